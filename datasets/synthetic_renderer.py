"""A textured mesh and exact cameras in, antialiased images, depth and object numbers out; OpenGL without a screen.

Any EGL driver serves; without a GPU Mesa's llvmpipe renders on the CPU. Colour is drawn with 4 samples a pixel and
mipmapped textures. Anisotropic filtering is done in the shader with up to three taps along the longer axis: Mesa's own
costs five times a plain look-up on the CPU. Depth and object numbers are drawn in a second pass at pixel centres, so
that no value mixes two surfaces.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import numpy as np

from worldline.annotate.camera import Intrinsics, invert
from worldline.datasets.schema import MissingBackend
from worldline.datasets.synthetic_mesh import SKY

MAX_OBJECTS = 64
"""Length of the shader's table of object transforms; uniform memory is scarce."""

_VERTEX = """
#version 330
in vec3 position; in vec2 uv; in float layer; in float object_idx; in vec3 tint;
uniform mat4 scene_from_object[64];
uniform vec3 centre_in_scene;
uniform mat3 cam_from_scene;
uniform mat4 clip_from_cam;
centroid out vec2 v_uv; out vec3 v_tint; flat out float v_layer; flat out float v_object; out float v_depth;
void main() {
    vec3 in_scene = (scene_from_object[int(object_idx)] * vec4(position, 1.0)).xyz;
    vec3 in_cam = cam_from_scene * (in_scene - centre_in_scene);
    gl_Position = clip_from_cam * vec4(in_cam, 1.0);
    v_uv = uv; v_tint = tint; v_layer = layer; v_object = object_idx; v_depth = in_cam.z;
}
"""

_COLOUR = """
#version 330
uniform sampler2DArray textures; uniform float size_px;
centroid in vec2 v_uv; in vec3 v_tint; flat in float v_layer;
out vec4 colour;
void main() {
    vec2 a = dFdx(v_uv), b = dFdy(v_uv);
    float aa = dot(a, a), bb = dot(b, b);
    vec2 major = aa > bb ? a : b;
    float longer = sqrt(max(aa, bb));
    float shorter = abs(a.x * b.y - a.y * b.x) / max(longer, 1e-12);
    float taps = clamp(ceil(longer / max(shorter, 1e-12) - 0.3), 1.0, 3.0);
    float lod = log2(max(longer / taps, shorter) * size_px);
    vec3 sum = vec3(0.0);
    for (float k = 0.0; k < taps; k += 1.0)
        sum += textureLod(textures, vec3(v_uv + major * ((k + 0.5) / taps - 0.5), v_layer), lod).rgb;
    float uneven = textureLod(textures, vec3(v_uv * 0.137 + v_layer * 0.31, 0.0), lod - 2.87).r;
    colour = vec4(sum / taps * v_tint * (0.62 + 0.76 * uneven), 1.0);
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
        self._targets: dict[tuple[int, int], tuple[Any, Any, Any]] = {}

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
        rgba = np.concatenate([textures, np.full_like(textures[..., :1], 255)], axis=-1)
        num_layers, size_px = textures.shape[:2]
        self._texture = context.texture_array((size_px, size_px, num_layers), 4, rgba.tobytes())
        self._texture.build_mipmaps()
        self._texture.filter = (moderngl.LINEAR_MIPMAP_LINEAR, moderngl.LINEAR)
        self._vertices = context.buffer(np.ascontiguousarray(vertices, dtype="f4").tobytes())
        self._colour = context.program(vertex_shader=_VERTEX, fragment_shader=_COLOUR)
        self._colour["size_px"].value = float(size_px)
        self._depth = context.program(vertex_shader=_VERTEX, fragment_shader=_DEPTH)
        self._colour_array = context.vertex_array(
            self._colour,
            [(self._vertices, "3f 2f 1f 1f 3f", "position", "uv", "layer", "object_idx", "tint")],
        )
        self._depth_array = context.vertex_array(
            self._depth, [(self._vertices, "3f 8x 4x 1f 12x", "position", "object_idx")]
        )
        context.enable_only(moderngl.DEPTH_TEST)

    def _targets_of(self, width: int, height: int) -> tuple[Any, Any, Any]:
        """Frame buffers of one size: many samples, resolved, and (depth, object)."""
        if (width, height) not in self._targets:
            context, size = self._context, (width, height)
            samples = min(4, context.max_samples)
            many = context.framebuffer(
                [context.renderbuffer(size, 4, samples=samples)],
                context.depth_renderbuffer(size, samples=samples),
            )
            one = context.framebuffer([context.renderbuffer(size, 4)])
            depth = context.framebuffer(
                [context.renderbuffer(size, 2, dtype="f4")], context.depth_renderbuffer(size)
            )
            self._targets[width, height] = many, one, depth
        return self._targets[width, height]

    def image(
        self, camera: Intrinsics, scene_from_cam: np.ndarray, scene_from_object: np.ndarray
    ) -> np.ndarray:
        """[H, W, 3] uint8 seen by a pinhole camera (fxfycxcy_px [4]) at scene_from_cam [3, 4].

        scene_from_object: [K, 3, 4], one for each object number from FIRST_MOVING on.
        """
        with self._context:
            many, one, _ = self._targets_of(camera.width, camera.height)
            self._set(self._colour, camera, scene_from_cam, scene_from_object)
            self._texture.use(0)
            many.use()
            many.clear()
            self._colour_array.render()
            self._context.copy_framebuffer(one, many)
            data = one.read(components=3, alignment=1)
        return np.frombuffer(data, np.uint8).reshape(camera.height, camera.width, 3)

    def depth(
        self, camera: Intrinsics, scene_from_cam: np.ndarray, scene_from_object: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Depth along the camera z axis [H, W] float32 at pixel centres, inf in the sky, and object numbers [H, W]."""
        with self._context:
            _, _, target = self._targets_of(camera.width, camera.height)
            self._set(self._depth, camera, scene_from_cam, scene_from_object)
            target.use()
            target.clear(np.inf, SKY)
            self._depth_array.render()
            data = target.read(components=2, alignment=1, dtype="f4")
        both = np.frombuffer(data, np.float32).reshape(camera.height, camera.width, 2)
        objects = both[..., 1].astype(np.int32)
        return np.where(objects == SKY, np.float32(np.inf), both[..., 0]), objects

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


def clip_from_cam(camera: Intrinsics, near_m: float = 0.08, far_m: float = 1500.0) -> np.ndarray:
    """OpenGL projection [4, 4] of a pinhole camera with OpenCV axes.

    Rows of a frame buffer are read from the bottom of OpenGL's image; mapping image y down to OpenGL y up therefore yields
    arrays whose first row is the image's top, and pixel (0, 0) is the corner in both worlds.
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
        return moderngl.create_context(standalone=True, backend="egl")
    except Exception as error:  # the binding raises bare Exception when no driver answers
        raise MissingBackend(f"rendering needs an EGL driver ({error}): {remedy}") from error
