"""Sizes and switches of the world model, and the four named sizes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from worldline.model.camera_embedding import CAMERA_KINDS, CameraGridConfig
from worldline.model.softmax_attention import AttentionSpan

KEY_SCALES = ("frame", "head", "none")
KEY_NORMS = ("width", "head")
ATTENTION_KINDS = ("frame_delta", "token_delta")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleaseQuirks:
    """Where the code of the released SANA-WM weights differs from the paper. False is the paper's form.

    `CameraGridConfig` holds two more, of the ray layout.
    """

    integer_timesteps: bool = False
    """Timesteps are cut to whole numbers before they are embedded."""
    bf16_softmax: bool = False
    """Queries, keys and values of softmax blocks are rounded to bfloat16 even in a float32 model."""
    padded_softmax_scale: bool = False
    """Camera heads of softmax blocks are padded to 128 channels and scaled by that width's root, not their
    own.
    """
    ray_rms_cap: bool = False
    """Camera queries, keys and values are scaled down where a ray transform raised their RMS. Ray-space
    attention then is
    no longer invariant to the choice of the world frame."""
    reads_padding: bool = False
    """Softmax blocks read padding frames as zero keys, and the feed-forward's temporal convolution reads
    them.
    """


RELEASE_QUIRKS = ReleaseQuirks(
    integer_timesteps=True,
    bf16_softmax=True,
    padded_softmax_scale=True,
    ray_rms_cap=True,
    reads_padding=True,
)
RELEASE_CAMERA_GRID = CameraGridConfig(cell_centre=0.0, first_stride_looks_ahead=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The transformer."""

    width: int
    """Channels of a token."""
    num_blocks: int
    num_heads: int
    """Of self- and cross-attention; the head width must be a multiple of 8 for the camera's 4-vectors."""
    latent_channels: int = 128
    """Of the autoencoder; 128 is LTX-2's."""
    text_channels: int = 2304
    """Of the text encoder; 2304 is Gemma-2 2B's."""
    softmax_every: int = 4
    """Every n-th block attends by softmax, the others by the gated delta rule; 0 is none."""
    ffn_ratio: int = 3
    """Feed-forward width over token width, after the gate."""
    key_conv_taps: int = 4
    """Latent frames the key's short convolution spans."""
    attention: str = "frame_delta"
    """"frame_delta": all tokens of a frame write at once (SANA-WM). "token_delta": one after another in
    raster order,
    the rule flash-linear-attention has kernels for."""
    key_scale: str = "frame"
    """"frame" is 1 / sqrt(D S), with which the recurrence contracts; "head" (1 / sqrt(D)) and "none" are
    the paper's
    ablation, which diverges."""
    key_norm: str = "width"
    """"width": one RMS over all heads, as in the paper. "head": one per head, so that no head can hold all
    energy.
    """
    spectral_guard: bool = False
    """Lowers beta where a transition could expand. Off by default: the released weights were trained
    without.
    """
    camera: str = "ucpe"
    """Coarse camera branch: "ucpe", "prope" or "none"."""
    plucker: bool = True
    """Fine camera branch: raw-frame Pluecker rays after each self-attention."""
    camera_grid: CameraGridConfig = field(default_factory=CameraGridConfig)
    span: AttentionSpan = field(default_factory=AttentionSpan)
    """Earlier frames softmax blocks read in the chunk-causal and streaming forms."""
    quirks: ReleaseQuirks = field(default_factory=ReleaseQuirks)

    def __post_init__(self) -> None:
        choices = [
            ("attention", self.attention, ATTENTION_KINDS),
            ("key_scale", self.key_scale, KEY_SCALES),
            ("key_norm", self.key_norm, KEY_NORMS),
            ("camera", self.camera, CAMERA_KINDS),
        ]
        for name, value, known in choices:
            if value not in known:
                raise ValueError(f"{name} {value!r}: known are {known}")
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} does not divide into {self.num_heads} heads")
        if self.head_dim % 8:
            raise ValueError(f"a head has {self.head_dim} channels, which must be a multiple of 8")
        counts = {
            "num_blocks": self.num_blocks,
            "ffn_ratio": self.ffn_ratio,
            "key_conv_taps": self.key_conv_taps,
        }
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} must be positive, got {count}")

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.width // self.num_heads

    def is_softmax(self, block_idx: int) -> bool:
        """Whether block `block_idx` attends by softmax."""
        return self.softmax_every > 0 and (block_idx + 1) % self.softmax_every == 0


def tiny() -> ModelConfig:
    """1.1 M parameters: trains on a CPU; the sizes of our own small autoencoder and text encoder."""
    return ModelConfig(width=96, num_blocks=4, num_heads=4, latent_channels=16, text_channels=384)


def small() -> ModelConfig:
    """32 M parameters: one small GPU."""
    return ModelConfig(width=384, num_blocks=8, num_heads=6, latent_channels=16, text_channels=384)


def base() -> ModelConfig:
    """0.57 B parameters, on the full model's latents and text."""
    return ModelConfig(width=1152, num_blocks=16, num_heads=12)


def full_2p6b() -> ModelConfig:
    """SANA-WM's size, in the paper's form."""
    return ModelConfig(width=2240, num_blocks=20, num_heads=20)


def release(config: ModelConfig) -> ModelConfig:
    """The same size with every switch set as the released weights need it."""
    return replace(config, quirks=RELEASE_QUIRKS, camera_grid=RELEASE_CAMERA_GRID)


SIZES = {"tiny": tiny, "small": small, "base": base, "2p6b": full_2p6b}
