"""What one stage of training is: `TrainConfig`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from worldline.datasets.transforms import ViewConfig
from worldline.model.autoencoder import AutoencoderConfig, Ltx2Config
from worldline.model.config import ModelConfig, tiny
from worldline.model.diffusion import FlowConfig
from worldline.model.patch_autoencoder import PatchAutoencoderConfig
from worldline.model.text import TextConfig

KINDS = ("autoencoder", "flow", "refiner")


@dataclass(frozen=True, kw_only=True, slots=True)
class RefineConfig:
    """What a refiner stage learns from: pairs of a worse and the true latent of a clip."""

    lora_rank: int = 16
    """Of the adapters that are trained on the model it begins from; 0 trains all of it."""
    sample_share: float = 0.5
    """Share of clips whose worse latent is that model's own sample along the clip's path; for the others it is the
    clip scaled down and up again."""
    sample_steps: int = 6
    """Euler steps of such a sample."""
    factors: tuple[float, float] = (2.0, 4.0)
    """Least and most that a clip is scaled down."""
    streamed_share: float = 0.5
    """Share of clips whose first blocks, any number but all, are given done and bear no loss, as in a stream, where a
    block reads finished ones; for the others all blocks have one level, as where a clip is refined whole."""

    def __post_init__(self) -> None:
        if self.lora_rank < 0 or self.sample_steps < 1 or not 0 <= self.sample_share <= 1:
            raise ValueError("lora_rank must be at least 0, sample_steps 1, sample_share a probability")
        if not 0 <= self.streamed_share <= 1:
            raise ValueError(f"streamed_share is a probability, got {self.streamed_share}")
        if not 1 <= self.factors[0] <= self.factors[1]:
            raise ValueError(f"factors {self.factors} must ascend from 1 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """How the processes divide the work; no part of what is computed."""

    shard: bool = False
    """Split weights, gradients and optimiser state over the processes, block by block (FSDP2)."""
    context_ranks: int = 1
    """Processes that share the latent frames of a clip; they must divide the number of processes. The paper's one-minute
    stage has 2."""
    checkpoint_blocks: bool = False
    """Keep one input a block for the backward pass and compute the rest again."""

    def __post_init__(self) -> None:
        if self.context_ranks < 1:
            raise ValueError(f"context_ranks must be positive, got {self.context_ranks}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One stage of training."""

    shards: str
    """Shard folder, local or any fsspec location."""
    out: Path
    """Run folder; where it has a checkpoint of the same config, training goes on from it."""
    init_from: Path | None = None
    """Run folder of the stage before: the autoencoder's, or a model whose parameters of equal name and shape
    are taken. A flow stage needs one for its autoencoder, unless that is LTX-2's. Or the `transformer` folder of a
    diffusers repository: SANA-WM's released weights."""
    kind: str = "flow"
    """"autoencoder", "flow" or "refiner", whose model runs a second time over the first stage's latents."""
    where: str = "TRUE"
    """SQL condition over the shards' index."""
    decisions: Path | None = None
    """Table of `worldline decide`: its kept clips alone, as often as it weighs them."""
    model: ModelConfig = field(default_factory=tiny)
    autoencoder: AutoencoderConfig | PatchAutoencoderConfig | Ltx2Config = field(
        default_factory=AutoencoderConfig
    )
    """Our causal one, which is trained; principal components of patches, which are fitted to the first
    `steps` batches; or LTX-2's, which is given."""
    text: TextConfig = field(default_factory=TextConfig)
    view: ViewConfig = field(default_factory=ViewConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    chunks: tuple[int, int] | None = None
    """Latent frames of the first chunk and of the others; None trains bidirectionally."""
    refine: RefineConfig = field(default_factory=RefineConfig)
    """Of a refiner stage."""
    cached_latents: bool = False
    """Read latents from the shards instead of encoding frames."""
    caption_dropout: float = 0.1
    """Share of clips without caption, for classifier-free guidance."""
    weigh_frames: bool = True
    """Weigh each frame's loss by how far its camera can be trusted (`ViewConfig`'s sigmas)."""
    steps: int = 1000
    global_batch: int = 16
    """Clips a step."""
    accumulation: int = 1
    """Equal parts a process's share of a batch is worked through in, to save memory."""
    lr: float = 5e-5
    """Peak learning rate; 5e-5 is SANA-WM's for five-second clips."""
    warmup_steps: int = 100
    final_lr_share: float = 1.0
    """Of the peak, reached at the end along a cosine; 1 is constant, as in the paper."""
    weight_decay: float = 0.01
    """On matrices and convolutions; vectors and tables have none."""
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = 0.5
    """Largest norm of the gradient; 0.5 is SANA-WM's."""
    ema_decay: float | None = None
    """Of the averaged weights; None keeps none, as the paper's public recipe."""
    bf16: bool | None = None
    """Matrix products in bfloat16; parameters and sums stay float32. None: on GPUs, since many CPUs only emulate it, at
    a seventh of the speed."""
    seed: int = 0
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    device: str = "cpu"
    cpu_threads: int | None = None
    """Threads of torch on the CPU; None leaves its default. One is faster for tiny models on a shared machine."""
    num_workers: int = 0
    """Processes that read and decode."""
    checkpoint_every: int = 500
    """Steps."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r}: known are {KINDS}")
        is_given = isinstance(self.autoencoder, Ltx2Config)
        if self.kind == "autoencoder" and is_given:
            raise ValueError("LTX-2's autoencoder is given: begin with a flow stage")
        if self.kind != "autoencoder" and self.init_from is None and not (is_given and self.kind == "flow"):
            raise ValueError(f"a {self.kind} stage needs --init-from, which has its autoencoder")
        if self.kind == "refiner" and (self.cached_latents or self.chunks is None or self.chunks[0] != 1):
            raise ValueError("a refiner reads frames, and its first chunk is the first frame: --chunks 1 N")
        if self.kind != "flow" and (self.parallel.shard or self.parallel.context_ranks > 1):
            raise ValueError("only flow stages split weights or clips over processes")
        if self.model.latent_channels != self.autoencoder.latent_channels:
            raise ValueError("model and autoencoder differ in latent_channels")
        strides = {self.view.time_stride, self.autoencoder.time_stride, self.model.camera_grid.time_stride}
        if len(strides) > 1:
            raise ValueError(f"view, autoencoder and model's camera_grid differ in time_stride: {strides}")
        counts = ("steps", "global_batch", "accumulation", "checkpoint_every", "log_every")
        if min(getattr(self, name) for name in counts) < 1 or self.global_batch % self.accumulation:
            raise ValueError(f"{counts} must be positive, and accumulation divide global_batch")
        if self.lr <= 0 or self.clip_norm <= 0 or self.warmup_steps < 0:
            raise ValueError("lr and clip_norm must be positive, warmup_steps at least 0")
        if self.kind == "autoencoder" and self.ema_decay is not None:
            raise ValueError(
                "the autoencoder stage keeps no average: its latents' scale is fitted to the weights"
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in 0 ... 1, got {self.ema_decay}")
