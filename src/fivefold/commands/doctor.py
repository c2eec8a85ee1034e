"""Check this installation: versions, device, number types, attention, processes, room, and a tiny training step."""

import math
import os
import platform
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from fivefold.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from fivefold.t5.model import T5Model

# Three checkpoints of t5_v1_1_small with their optimizer states; its weights, gradients and moments.
_ROOM_ON_DISK, _ROOM_IN_MEMORY = 3 * 2**30, 2 * 2**30


class Finding(NamedTuple):
    """What one check has found."""

    state: Literal["ok", "warn", "FAIL"]
    found: str
    remedy: str = ""
    """What to do, unless all is well."""


def run(*, dry_run: bool) -> None:
    """Make every check and print a line for each, as it is made.

    Raises:
        ConfigError: one of them failed.
    """
    failed = []
    for name, check in CHECKS.items():
        if dry_run:
            print(f"{name:12}  {check.__doc__}")
            continue
        finding = _find(check)
        remedy = f"  ({finding.remedy})" if finding.remedy else ""
        print(f"{finding.state:4}  {name:12}  {finding.found}{remedy}", flush=True)
        if finding.state == "FAIL":
            failed.append(f"{name} ({finding.found})")
    if failed:
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        raise ConfigError(f"This installation does not work: {failed[0]}{more}; see the lines marked FAIL.")


def _find(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # whatever a broken installation may throw
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return Finding("FAIL", what, "reinstall fivefold in a fresh environment; if it stays, report it as a bug")


def check_python() -> Finding:
    """The version of Python."""
    from packaging.specifiers import SpecifierSet

    version, needed = platform.python_version(), metadata.metadata("fivefold")["Requires-Python"]
    if SpecifierSet(needed).contains(version, prereleases=True):
        return Finding("ok", version)
    return Finding("FAIL", version, f"fivefold needs {needed}")


def check_packages() -> Finding:
    """The versions of the packages that fivefold needs."""
    good, missing, wrong = _versions(extra="")
    if missing or wrong:
        return Finding("FAIL", ", ".join(missing + wrong), "pip install --upgrade fivefold")
    return Finding("ok", ", ".join(good))


def check_extras() -> Finding:
    """The packages that only some flags need: wandb, and sentencepiece for tokenizers of spiece.model alone."""
    wandb, sentencepiece = _versions(extra="wandb"), _versions(extra="sentencepiece")
    good, missing, wrong = (ours + theirs for ours, theirs in zip(wandb, sentencepiece, strict=True))
    remedy = "pip install 'fivefold[wandb,sentencepiece]' if you need them" if missing or wrong else ""
    return Finding("warn" if wrong else "ok", ", ".join(good + missing + wrong), remedy)


def check_device() -> Finding:
    """What training runs on, and with how many threads."""
    import torch

    from fivefold.training.telemetry import describe_hardware

    hardware = describe_hardware()
    found = f"{hardware['device']}, {hardware['cores']} cores, torch uses {hardware['threads']}"
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return Finding("ok", f"{found}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB of the GPU are free")
    if shutil.which("nvidia-smi"):
        return Finding(
            "warn", f"{found}; torch {torch.__version__} sees no GPU", "install torch for the CUDA of the driver"
        )
    if torch.backends.mps.is_available():
        found += "; the Apple GPU is not used"
    return Finding("ok", found)


def check_dtypes() -> Finding:
    """Whether bfloat16, in which training multiplies by default, is faster here than float32."""
    import torch

    seconds = {dtype: _matmul_seconds(dtype) for dtype in (torch.float32, torch.bfloat16)}
    speed = seconds[torch.float32] / seconds[torch.bfloat16]
    found = (
        f"bfloat16 takes {1000 * seconds[torch.bfloat16]:.2f} ms for a product, {speed:.1f} times as fast as float32"
    )
    return Finding("warn", found, "train with --dtype float32") if speed < 1 else Finding("ok", found)


def check_attention() -> Finding:
    """torch's attention kernels, and our attention with a learned bias against torch's in float64."""
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from fivefold.nn.attention import attention

    device = _device()
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 4, 16, 16, generator=generator) for _ in range(3)]
    inputs.append(torch.randn(1, 4, 16, 16, generator=generator))
    kernels = []
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        query, key, value = (tensor.to(device, torch.bfloat16) for tensor in inputs[:3])
        with warnings.catch_warnings(), sdpa_kernel(backend):
            warnings.simplefilter("ignore")  # torch explains at length why a kernel cannot be used
            try:
                F.scaled_dot_product_attention(query, key, value)
            except RuntimeError:
                continue
        kernels.append(backend.name.removesuffix("_ATTENTION").lower())
    ours, exact = (
        [tensor.detach().to(place, dtype).requires_grad_() for tensor in inputs]
        for place, dtype in ((device, torch.float32), ("cpu", torch.float64))
    )
    out = attention(ours[0], ours[1], ours[2], bias=ours[3])
    expected = F.scaled_dot_product_attention(exact[0], exact[1], exact[2], attn_mask=exact[3], scale=1.0)
    pairs = [(out, expected)]
    grads = (torch.autograd.grad(each.square().sum(), tensors) for each, tensors in ((out, ours), (expected, exact)))
    pairs += zip(*grads, strict=True)
    error = max(float((got.cpu() - true).detach().abs().max() / true.detach().abs().max()) for got, true in pairs)
    found = f"torch has {', '.join([*kernels, 'math'])}; ours with a bias is within {error:.0e} of float64"
    # float32 has 1e-7, and GPUs may take products of 10 bits where the user allows it.
    return Finding("ok", found) if error < 2e-3 else Finding("FAIL", found, "reinstall torch; then report it as a bug")


def check_processes() -> Finding:
    """Whether several processes could train together: gloo on CPUs, NCCL on GPUs."""
    import torch
    import torch.distributed as dist

    if not dist.is_available():
        return Finding("warn", "this torch has no torch.distributed", "install another torch to use torchrun")
    backends = [name for name in ("gloo", "nccl") if dist.is_backend_available(name)]
    needed = "nccl" if torch.cuda.is_available() else "gloo"
    if needed not in backends:
        return Finding("warn", f"torch has no {needed}", "use one process, or install another torch")
    with tempfile.TemporaryDirectory() as folder:
        try:
            dist.init_process_group(needed, init_method=f"file://{folder}/group", rank=0, world_size=1)
            dist.all_reduce(torch.ones(1, device=_device()))
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            return Finding("warn", f"{needed} does not start: {reason}", "use one process, or mend the host's name")
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
    return Finding("ok", f"{', '.join(backends)}; {needed} starts")


def check_memory() -> Finding:
    """The memory that is free."""
    free = _free_memory_bytes()
    if free is None:
        return Finding("ok", "this system does not say how much is free")
    remedy = "take a small preset and --batch_size, and --gradient_checkpointing" if free < _ROOM_IN_MEMORY else ""
    return Finding("warn" if remedy else "ok", f"{free / 2**30:.1f} GiB free", remedy)


def check_disk() -> Finding:
    """The room for runs in this folder and for temporary files."""
    here, elsewhere = Path.cwd(), Path(tempfile.gettempdir())
    free = shutil.disk_usage(here).free
    found = f"{free / 2**30:.1f} GiB free here, {shutil.disk_usage(elsewhere).free / 2**30:.1f} GiB in {elsewhere}"
    if not os.access(here, os.W_OK):
        return Finding("warn", f"{here} cannot be written to", "give --output_dir FOLDER")
    remedy = "make room, or give --output_dir FOLDER on another disk" if free < _ROOM_ON_DISK else ""
    return Finding("warn" if remedy else "ok", found, remedy)


def check_training() -> Finding:
    """A few steps of a tiny low-rank T5 on one batch: its loss must fall."""
    from fivefold.training.optimizers import build_optimizer
    from fivefold.training.settings import OptimizerSettings

    model, batch = _tiny_model(), _tiny_batch()
    optimizer = build_optimizer(model, OptimizerSettings(optimizer="loro_muon", lr=1e-2))
    losses = []
    begin = time.perf_counter()
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    milliseconds = (time.perf_counter() - begin) / len(losses) * 1000
    found = f"the loss goes from {losses[0]:.3f} to {losses[-1]:.3f} in 5 steps of {milliseconds:.0f} ms"
    if losses[-1] < losses[0] and math.isfinite(losses[0]):
        return Finding("ok", found)
    return Finding("FAIL", found, "report it as a bug")


def check_checkpoint() -> Finding:
    """The same model saved and loaded: equal logits."""
    import torch

    from fivefold.models.load import load_model

    model, batch = _tiny_model().eval(), _tiny_batch()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model.save_pretrained(folder)
        loaded: Any = load_model(folder)
        loaded.to(_device()).eval()
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        if torch.equal(model(**batch).logits, loaded(**batch).logits):
            return Finding("ok", f"{size / 2**10:.0f} KiB written and read, logits equal")
    return Finding("FAIL", "the loaded model's logits are not the saved one's", "report it as a bug")


CHECKS: dict[str, Callable[[], Finding]] = {
    "python": check_python,
    "packages": check_packages,
    "extras": check_extras,
    "device": check_device,
    "dtypes": check_dtypes,
    "attention": check_attention,
    "processes": check_processes,
    "memory": check_memory,
    "disk": check_disk,
    "training": check_training,
    "checkpoint": check_checkpoint,
}


def _versions(extra: str) -> tuple[list[str], list[str], list[str]]:
    """What the installed metadata require, of an extra or ("") without one: what fits, is missing, does not fit."""
    from packaging.requirements import Requirement

    good, missing, wrong = [], [], []
    for requirement in map(Requirement, metadata.requires("fivefold") or []):
        marker = requirement.marker
        is_extra = marker is not None and not marker.evaluate({"extra": ""})
        if is_extra != bool(extra) or (marker is not None and not marker.evaluate({"extra": extra})):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            missing.append(f"no {requirement.name}")
            continue
        if requirement.specifier.contains(version, prereleases=True):
            good.append(f"{requirement.name} {version}")
        else:
            wrong.append(f"{requirement.name} {version}, but {requirement.specifier} is needed")
    return good, missing, wrong


def _device() -> "torch.device":
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _matmul_seconds(dtype: "torch.dtype") -> float:
    """The fastest of four products of square matrices: 512 rows on a CPU, 4,096 on a GPU."""
    import torch

    device = _device()
    matrix = torch.ones(4096 if device.type == "cuda" else 512, device=device, dtype=dtype).diag()
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # waits for the GPU
        seconds.append(time.perf_counter() - begin)
    return min(seconds[1:])  # the first one loads the kernel


def _free_memory_bytes() -> int | None:
    """Free or soon to be freed, of the container where it has a limit."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    try:
        limit, used = (
            int(Path(f"/sys/fs/cgroup/memory.{name}").read_text(encoding="utf-8")) for name in ("max", "current")
        )
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return free
    return min(free, limit - used)


def _tiny_model() -> "T5Model":
    import torch

    from fivefold.lowrank.convert import convert
    from fivefold.t5.config import T5Config
    from fivefold.t5.model import T5Model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = T5Model(T5Config.get_preset("t5_mini", vocab_size=512, d_model=64, d_kv=16, d_ff=128))
    convert(model, scope="all", attn_rank=16, mlp_rank=16, init="xavier")
    return model.to(_device())  # type: ignore[arg-type]


def _tiny_batch() -> "dict[str, torch.Tensor]":
    import torch

    tokens = torch.arange(3, 67, device=_device()).reshape(4, 16)
    return {"input_ids": tokens, "labels": tokens.flip(0)}
