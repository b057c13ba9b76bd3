"""Generated street scenes in two domains, written in the GTA5 and Cityscapes on-disk formats.

Shorthand: H x W image size in pixels, trainId = class code of Cityscapes-19, X = metres to the right of the camera,
Y = metres above the ground, Z = metres ahead of the camera.

A scene is made in two independent steps.

1. *Layout*: a small 3-D street is drawn back to front through a pinhole camera onto one canvas of part numbers (at
   `SUPERSAMPLING` times the size). A part is a piece of an object (a facade, its windows, a tyre) that knows its class,
   instance, tone and depth. The label map is a table look-up of that canvas. Layout depends on the seed, the index and
   the domain only.
2. *Appearance*: each part gets a colour and a texture from its class's `ClassLook`; the canvas becomes an image by
   table look-ups. In the target domain the looks are moved by the `Shift`, and haze, blur, noise, a colour cast and
   gamma are laid over the image.

Everything that decides how hard the domain gap is stands in two modules of tables: `looks` with `LOOKS` (colour,
texture and difficulty per class) and the constants `SHIFT_*` and `TARGET_*`, and `content` with `CONTENT` (what is in a
street, per domain). `layout` makes step 1 on a `canvas`, with what `buildings`, `people` and `vehicles` draw;
`appearance` makes step 2, `writing` the files.
"""

from __future__ import annotations

from cbst_mx.data.street_scenes.content import CONTENT, Content
from cbst_mx.data.street_scenes.looks import LOOKS, ClassLook, Shift
from cbst_mx.data.street_scenes.writing import render_scene, write_demo_data

__all__ = ["CONTENT", "LOOKS", "ClassLook", "Content", "Shift", "render_scene", "write_demo_data"]
