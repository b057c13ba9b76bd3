import mxnet as mx
from mxnet import gluon, nd, autograd
