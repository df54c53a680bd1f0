"""A textured mesh and exact cameras in, antialiased images, depth and object numbers out.

Any EGL driver serves; without a GPU Mesa's llvmpipe renders on the CPU. Colour is drawn with 2 x 2
samples a pixel (Mesa's multisampling takes twice as long on a CPU) from mipmapped textures. For surfaces seen
at a slant each texture also exists blurred by four along u and along v, so that one look-up filters a
stretched footprint: anisotropic sampling costs Mesa the time of five. Depth and object numbers are drawn in a
second pass at pixel centres, so that no value mixes two surfaces.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import cv2
import numpy as np

from worldline.annotate.camera import Intrinsics, invert
from worldline.datasets.schema import MissingBackend
from worldline.datasets.synthetic_mesh import SKY, STATIC

MAX_OBJECTS = 64
"""Length of the shader's table of object transforms; uniform memory is scarce."""

_VERTEX = """
#version 330
in vec3 position; in vec2 uv; in float layer; in float object_idx; in vec3 tint;
uniform mat4 scene_from_object[64];
uniform vec3 centre_in_scene;
uniform mat3 cam_from_scene;
uniform mat4 clip_from_cam;
out vec2 v_uv; out vec3 v_tint; flat out float v_layer; flat out float v_object; out float v_depth;
void main() {
    vec3 in_scene = (scene_from_object[int(object_idx)] * vec4(position, 1.0)).xyz;
    vec3 in_cam = cam_from_scene * (in_scene - centre_in_scene);
    gl_Position = clip_from_cam * vec4(in_cam, 1.0);
    v_uv = uv; v_tint = tint; v_layer = layer; v_object = object_idx; v_depth = in_cam.z;
}
"""

_COLOUR = """
#version 330
uniform sampler2DArray textures; uniform float size_px; uniform float num_layers;
in vec2 v_uv; in vec3 v_tint; flat in float v_layer;
out vec4 colour;
void main() {
    vec2 a = dFdx(v_uv), b = dFdy(v_uv);
    float u = max(abs(a.x), abs(b.x)), v = max(abs(a.y), abs(b.y));
    float isotropic = sqrt(max(dot(a, a), dot(b, b)));
    bool is_u = u > 2.5 * v, is_v = v > 2.5 * u;
    float side = is_u ? max(v, 0.25 * u) : is_v ? max(u, 0.25 * v) : isotropic;
    float layer = v_layer + (is_u ? num_layers : is_v ? 2.0 * num_layers : 0.0);
    vec3 albedo = textureLod(textures, vec3(v_uv, layer), log2(side * size_px)).rgb;
    // Smooth, so that its level may be a whole number: Mesa then reads one level instead of two.
    float coarse = max(floor(log2(isotropic * size_px) - 2.87), 0.0);
    float uneven = textureLod(textures, vec3(v_uv * 0.137 + v_layer * 0.31, 0.0), coarse).r;
    colour = vec4(albedo * v_tint * (0.62 + 0.76 * uneven), 1.0);
}
"""

_DEPTH = """
#version 330
in float v_depth; flat in float v_object;
out vec2 depth_object;
void main() { depth_object = vec2(v_depth, v_object); }
"""


class Renderer:
    """Draws one mesh from any camera. Use as a context manager, or call `close`; belongs to one thread."""

    def __init__(self, vertices: np.ndarray, textures: np.ndarray) -> None:
        """vertices: [N, 10] and textures: [L, S, S, 3] of `synthetic_mesh.Mesh`.

        Raises MissingBackend where moderngl or an EGL driver is missing.
        """
        self._context = _create_context()
        with self._context:
            self._build(vertices, textures)
        self._targets: dict[tuple[int, int], tuple[Any, Any]] = {}

    def __enter__(self) -> Renderer:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Frees the driver's memory."""
        self._context.gc_mode = "context_gc"
        self._context.release()

    def _build(self, vertices: np.ndarray, textures: np.ndarray) -> None:
        import moderngl

        context = self._context
        num_layers, size_px = textures.shape[:2]
        self._texture = context.texture_array((size_px, size_px, 3 * num_layers), 4)
        for layer, image in enumerate(textures):
            for copy, blurred in enumerate((image, _blurred(image, 1), _blurred(image, 0))):
                rgba = cv2.cvtColor(blurred, cv2.COLOR_RGB2RGBA)
                where = (0, 0, layer + copy * num_layers, size_px, size_px, 1)
                self._texture.write(rgba, viewport=where)
        self._texture.build_mipmaps()
        self._texture.filter = (moderngl.LINEAR_MIPMAP_LINEAR, moderngl.LINEAR)
        self._vertices = context.buffer(np.ascontiguousarray(vertices, dtype="f4").tobytes())
        self._colour = context.program(vertex_shader=_VERTEX, fragment_shader=_COLOUR)
        self._colour["size_px"].value = float(size_px)
        self._colour["num_layers"].value = float(num_layers)
        self._depth = context.program(vertex_shader=_VERTEX, fragment_shader=_DEPTH)
        self._corners = vertices[:, :3].reshape(-1, 3, 3).astype(np.float32)  # [F, 3 corners, 3]
        self._face_object = vertices[::3, 6].astype(np.int32)
        self._elements = context.buffer(reserve=12 * len(self._corners), dynamic=True)
        self._colour_array = context.vertex_array(
            self._colour,
            [(self._vertices, "3f 2f 1f 1f 3f", "position", "uv", "layer", "object_idx", "tint")],
            index_buffer=self._elements,
        )
        self._depth_array = context.vertex_array(
            self._depth,
            [(self._vertices, "3f 8x 4x 1f 12x", "position", "object_idx")],
            index_buffer=self._elements,
        )
        context.enable_only(moderngl.DEPTH_TEST)

    def _targets_of(self, width: int, height: int) -> tuple[Any, Any]:
        """Frame buffers for an image of this size: colour with 2 x 2 samples a pixel, and (depth, object)."""
        if (width, height) not in self._targets:
            context, fine, size = self._context, (2 * width, 2 * height), (width, height)
            colour = context.framebuffer([context.renderbuffer(fine, 4)], context.depth_renderbuffer(fine))
            depth = context.framebuffer(
                [context.renderbuffer(size, 2, dtype="f4")], context.depth_renderbuffer(size)
            )
            self._targets[width, height] = colour, depth
        return self._targets[width, height]

    def image(
        self, camera: Intrinsics, scene_from_cam: np.ndarray, scene_from_object: np.ndarray
    ) -> np.ndarray:
        """[H, W, 3] uint8 seen by a pinhole camera (fxfycxcy_px [4]) at scene_from_cam [3, 4].

        scene_from_object: [K, 3, 4], one for each object number from FIRST_MOVING on.
        """
        with self._context:
            target, _ = self._targets_of(camera.width, camera.height)
            self._set(self._colour, camera, scene_from_cam, scene_from_object)
            self._texture.use(0)
            target.use()
            target.clear()
            self._colour_array.render(vertices=self._order(camera, scene_from_cam))
            data = target.read(components=4, alignment=1)
        fine = np.frombuffer(data, np.uint8).reshape(2 * camera.height, 2 * camera.width, 4)
        image = cv2.resize(fine, (camera.width, camera.height), interpolation=cv2.INTER_AREA)
        return cv2.cvtColor(image, cv2.COLOR_RGBA2RGB)

    def depth(
        self, camera: Intrinsics, scene_from_cam: np.ndarray, scene_from_object: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Depth along z [H, W] float32 at pixel centres, inf in the sky, and object numbers [H, W] int32."""
        with self._context:
            _, target = self._targets_of(camera.width, camera.height)
            self._set(self._depth, camera, scene_from_cam, scene_from_object)
            target.use()
            target.clear(np.inf, SKY)
            self._depth_array.render(vertices=self._order(camera, scene_from_cam))
            data = target.read(components=2, alignment=1, dtype="f4")
        both = np.frombuffer(data, np.float32).reshape(camera.height, camera.width, 2)
        objects = both[..., 1].astype(np.int32)
        return np.where(objects == SKY, np.float32(np.inf), both[..., 0]), objects

    def _order(self, camera: Intrinsics, scene_from_cam: np.ndarray) -> int:
        """Sorts faces near to far, so that hidden pixels are never textured; returns the number of indices to
        draw.

        Faces wholly outside the view are left out; moving ones come first and the sky last.
        """
        fx, fy, cx, cy = (float(v) for v in camera.fxfycxcy_px)
        # Normals of the pyramid's sides, pointing out of it: a face is outside where all its corners are.
        sides = np.array(
            [[-fx, 0, -cx], [fx, 0, cx - camera.width], [0, -fy, -cy], [0, fy, cy - camera.height]]
        )
        to_sides = (scene_from_cam[:, :3] @ np.vstack([sides, [0, 0, -1]]).T).astype(np.float32)  # [3, 5]
        corners = self._corners - scene_from_cam[:, 3].astype(np.float32)
        is_outside = (corners @ to_sides > 0).all(axis=1).any(axis=1)
        faces = np.flatnonzero(~is_outside | (self._face_object != STATIC))
        centroid = corners[faces].sum(axis=1)
        distance = np.einsum("fk,fk->f", centroid, centroid)
        distance[self._face_object[faces] == SKY] = np.inf
        distance[self._face_object[faces] > SKY] = 0.0
        faces = faces[np.argsort(distance, kind="stable")]
        indices = (3 * faces[:, None] + np.arange(3)).astype(np.int32)
        self._elements.write(indices)
        return indices.size

    def _set(self, program: Any, camera: Intrinsics, scene_from_cam: np.ndarray, objects: np.ndarray) -> None:
        """Hands cameras and object transforms to a shader; OpenGL stores matrices column by column."""
        if len(objects) > MAX_OBJECTS - 2:
            raise ValueError(f"at most {MAX_OBJECTS - 2} moving objects, got {len(objects)}")
        table = np.tile(np.eye(4), (MAX_OBJECTS, 1, 1))
        table[SKY, :3, 3] = scene_from_cam[:, 3]
        table[SKY + 1 : SKY + 1 + len(objects), :3] = objects
        program["scene_from_object"].write(table.mT.astype("f4").tobytes())
        program["centre_in_scene"].write(scene_from_cam[:, 3].astype("f4").tobytes())
        program["cam_from_scene"].write(invert(scene_from_cam)[:, :3].T.astype("f4").tobytes())
        program["clip_from_cam"].write(clip_from_cam(camera).T.astype("f4").tobytes())


def _blurred(image: np.ndarray, axis: int) -> np.ndarray:
    """A texture averaged over four texels along an axis (0: v, 1: u), centred, across its seam."""
    kernel = np.array([[1, 2, 2, 2, 1]], np.float32) / 8
    wide = cv2.copyMakeBorder(image, 2, 2, 2, 2, cv2.BORDER_WRAP)
    return np.ascontiguousarray(cv2.filter2D(wide, -1, kernel if axis else kernel.T)[2:-2, 2:-2])


def clip_from_cam(camera: Intrinsics, near_m: float = 0.08, far_m: float = 1500.0) -> np.ndarray:
    """OpenGL projection [4, 4] of a pinhole camera with OpenCV axes.

    Rows of a frame buffer are read from the bottom of OpenGL's image; mapping image y down to OpenGL y up
    therefore yields arrays whose first row is the image's top, and pixel (0, 0) is the corner in both worlds.
    """
    fx, fy, cx, cy = (float(v) for v in camera.fxfycxcy_px)
    w, h = camera.width, camera.height
    return np.array(
        [
            [2 * fx / w, 0, 2 * cx / w - 1, 0],
            [0, 2 * fy / h, 2 * cy / h - 1, 0],
            [0, 0, (far_m + near_m) / (far_m - near_m), -2 * far_m * near_m / (far_m - near_m)],
            [0, 0, 1, 0],
        ]
    )


def _create_context() -> Any:
    remedy = "pip install 'worldline[render]' and, on Debian, apt install libegl1 libgl1-mesa-dri"
    try:
        import moderngl
    except ImportError as error:
        raise MissingBackend(f"rendering needs moderngl: {remedy}") from error
    try:
        return moderngl.create_context(standalone=True, backend="egl")  # type: ignore[arg-type]
    except Exception as error:  # the binding raises bare Exception when no driver answers
        raise MissingBackend(f"rendering needs an EGL driver ({error}): {remedy}") from error
