"""How much memory a model needs, and where it goes. Pure.

Everything is estimated from the GGUF header before a process is started, so that a model that
cannot fit is refused with words and never by the kernel. Estimates lean to the high side; the
measured figure replaces them after the load.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Final, Literal

from agent.inference.inventory import (
    Claim,
    Device,
    Inventory,
    Reservation,
    available_bytes,
)
from agent.inference.options import Options
from agent.models.installed import GgufSummary
from agent.settings import KvCacheType, Settings

MIB: Final = 1 << 20
GIB: Final = 1 << 30

CONTEXT_FLOOR: Final = 4
VISION_CONTEXT_FLOOR: Final = 2048
SLOT_LIMIT: Final = 16
TYPICAL_SEQUENCE_CELLS: Final = 2048
"""Cells a slot needs in practice: unified KV is shared, so a slot need not own a context."""
LOWER_CONTEXTS: Final = (32768, 4096)
"""Automatic contexts to fall back to when memory is short."""
IDLE_CELL_LIMITS: Final = (256, 1024)
"""Unified attention reads every used cell, so few idle ones may stay."""
HOST_CACHE_KV_MULTIPLE: Final = 4
HOST_CACHE_SHARE: Final = Fraction(1, 8)
FIT_SHARE: Final = Fraction(4, 5)
"""Part of a device's free memory that a new runner may plan with."""
HOST_KV_SHARE: Final = Fraction(1, 8)
"""Part of all RAM that automatic slots may fill with KV."""
GPU_KV_SHARE: Final = Fraction(1, 2)
"""Part of what a GPU has left after the model that automatic slots may fill with KV."""

PROCESS_BYTES: Final = 96 * MIB
"""Interpreter, libraries and buffers of a runner on the host."""
GPU_CONTEXT_BYTES: Final = 384 * MIB
"""Driver context and kernels of one process on one GPU."""
_GRAPH_WIDTHS: Final = 24
"""Float32 activations of one token that live at once, in embedding lengths: hidden state,
query, key, value, attention output and the feed-forward width, double-buffered."""

_KV_BYTES: Final[dict[KvCacheType, Fraction]] = {
    "f32": Fraction(4),
    "f16": Fraction(2),
    "bf16": Fraction(2),
    "q8_0": Fraction(34, 32),
    "q5_1": Fraction(24, 32),
    "q5_0": Fraction(22, 32),
    "q4_1": Fraction(20, 32),
    "q4_0": Fraction(18, 32),
}

FlashAttention = Literal["auto", "on", "off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadWish:
    """What one request asks of a load."""

    header: GgufSummary
    options: Options
    embedding: bool = False
    vision: bool = False
    adapter_bytes: int = 0
    context_ceiling: int = 0
    """Largest automatic context to try; 0 for no bound. Lowered after a load ran out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """Everything a load needs to know, and the memory it may take."""

    sequence_context: int
    automatic_context: int
    """The context an unset ``num_ctx`` means on this node."""
    context_is_automatic: bool
    slots: int
    cells: int
    batch: int
    micro_batch: int
    gpu_layers: int
    main_gpu: int
    split_mode: Literal["none", "layer"]
    tensor_split: tuple[float, ...]
    use_mmap: bool
    flash_attention: FlashAttention
    kv_type: KvCacheType
    idle_cells: int
    host_cache_bytes: int
    device_id: str
    """Where most of the model is."""
    fully_on_gpu: bool
    gpu_count: int
    claims: tuple[Claim, ...]

    @property
    def size_bytes(self) -> int:
        """All memory of the runner."""
        return sum(claim.size_bytes for claim in self.claims)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why no plan exists. ``reason`` is a sentence part for the user."""

    kind: Literal["memory", "option"]
    reason: str
    need_bytes: int = 0
    have_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """Sizes of one candidate load, per device and per layer."""

    layer_bytes: tuple[int, ...]
    """Weights and KV of each block, then the output head."""
    compute_bytes: int
    host_bytes: int
    """What the host holds whatever is offloaded."""

    @property
    def layer_count(self) -> int:
        return len(self.layer_bytes)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Blocks per GPU, in the order given; the rest stays on the host."""

    gpus: tuple[Device, ...]
    counts: tuple[int, ...]

    @property
    def layers(self) -> int:
        return sum(self.counts)


def size_text(size_bytes: int) -> str:
    """``3.4 GiB`` or ``12 MiB``, for sentences."""
    if size_bytes >= GIB:
        return f"{size_bytes / GIB:.1f} GiB"
    return f"{-(-size_bytes // MIB)} MiB"


def layer_kv_bytes(header: GgufSummary, kv_type: KvCacheType) -> tuple[Fraction, ...]:
    """KV bytes of one cell, per layer.

    Layers with a sliding window count in full: the runner keeps whole caches so that prefixes
    can be reused, which is also llama.cpp's default.
    """
    per_head = (header.key_length + header.value_length) * _KV_BYTES[kv_type]
    heads = header.head_count_kv
    if len(heads) < header.block_count:
        heads = (*heads, *((heads[-1] if heads else 0,) * (header.block_count - len(heads))))
    return tuple(per_head * count for count in heads[: header.block_count])


def kv_bytes(header: GgufSummary, kv_type: KvCacheType, cells: int) -> int:
    """KV of the whole model for ``cells`` cells, rounded up."""
    return _ceil(sum(layer_kv_bytes(header, kv_type), Fraction(0)) * cells)


def compute_bytes(
    header: GgufSummary, *, cells: int, micro_batch: int, slots: int, flash: bool
) -> int:
    """Graph and output buffers of one device.

    The graph is reserved for a full micro-batch in which every row asks for logits. Without
    flash attention it holds the score matrix of one layer as well.
    """
    rows = min(micro_batch, cells)
    activations = rows * header.embedding_length * 4 * _GRAPH_WIDTHS
    logits = (rows + slots) * header.vocabulary * 4
    mask = rows * cells * (2 if flash else 4)
    scores = 0 if flash else rows * cells * max(1, header.head_count) * 4
    return activations + logits + mask + scores


def automatic_context(settings: Settings, inventory: Inventory) -> int:
    """The context that an unset ``num_ctx`` means: the setting, else by total GPU memory."""
    if settings.context_length > 0:
        return settings.context_length
    vram_bytes = sum(gpu.total_bytes for gpu in inventory.usable_gpus)
    if vram_bytes < 23 * GIB:
        return 4096
    return 32768 if vram_bytes < 47 * GIB else 262144


def contexts_to_try(wish: LoadWish, settings: Settings, inventory: Inventory) -> tuple[int, ...]:
    """Contexts in falling order of preference. More than one only when the size is automatic."""
    train = wish.header.context_length

    def bounded(context: int) -> int:
        capped = min(context, train) if train > 0 else context
        return max(CONTEXT_FLOOR, capped)

    if wish.options.num_ctx > 0:
        return (bounded(wish.options.num_ctx),)
    first = automatic_context(settings, inventory)
    if wish.vision:
        first = max(first, VISION_CONTEXT_FLOOR)
    if settings.context_length > 0:
        return (bounded(first),)
    if wish.context_ceiling > 0:
        first = min(first, wish.context_ceiling)
    candidates = [first, *(lower for lower in LOWER_CONTEXTS if lower < first)]
    return tuple(dict.fromkeys(bounded(context) for context in candidates))


def plan_load(
    wish: LoadWish,
    settings: Settings,
    inventory: Inventory,
    reservations: Sequence[Reservation] = (),
) -> LoadPlan | Refusal:
    """Choose context, slots and devices for one load.

    Order of preference: the whole model on the one GPU with most room, spread over all GPUs,
    as many layers as fit, the CPU. An automatic context is lowered before layers leave the
    GPUs. No device is planned beyond four fifths of what it has available.
    """
    options = wish.options
    gpus = inventory.usable_gpus
    if options.main_gpu is not None and gpus and options.main_gpu not in {g.index for g in gpus}:
        known = ", ".join(str(gpu.index) for gpu in gpus)
        return Refusal("option", f"main_gpu {options.main_gpu} does not exist; GPUs here: {known}")
    contexts = contexts_to_try(wish, settings, inventory)
    best: LoadPlan | None = None
    refusal: Refusal | None = None
    for context in contexts:
        outcome = _plan_context(wish, context, settings, inventory, reservations)
        if isinstance(outcome, Refusal):
            refusal = outcome
            continue
        if outcome.fully_on_gpu or not gpus or options.num_gpu >= 0:
            return outcome
        if best is None or outcome.gpu_layers > best.gpu_layers:
            best = outcome
    if best is not None:
        return best
    if refusal is None:
        raise AssertionError("there is at least one context to try")
    return refusal


def _plan_context(
    wish: LoadWish,
    context: int,
    settings: Settings,
    inventory: Inventory,
    reservations: Sequence[Reservation],
) -> LoadPlan | Refusal:
    if wish.embedding:
        # Inputs that share a pass share its cells too, so slots cost next to nothing here.
        return _place(wish, context, SLOT_LIMIT, context, settings, inventory, reservations)
    exact_slots = max(0, settings.num_parallel)
    slots = exact_slots or 1
    plan = _place(wish, context, slots, context * slots, settings, inventory, reservations)
    if isinstance(plan, Refusal) or exact_slots:
        return plan
    cells = _roomy_cells(wish, plan, settings, inventory, reservations)
    while cells > context:
        slots = max(1, min(SLOT_LIMIT, cells // min(context, TYPICAL_SEQUENCE_CELLS)))
        grown = _place(wish, context, slots, cells, settings, inventory, reservations)
        if isinstance(grown, LoadPlan) and grown.gpu_layers >= plan.gpu_layers:
            return grown
        cells = max(context, cells // 2)
    slots = max(1, min(SLOT_LIMIT, context // TYPICAL_SEQUENCE_CELLS))
    shared = _place(wish, context, slots, context, settings, inventory, reservations)
    if isinstance(shared, LoadPlan) and shared.gpu_layers >= plan.gpu_layers:
        return shared
    return plan


def _roomy_cells(
    wish: LoadWish,
    plan: LoadPlan,
    settings: Settings,
    inventory: Inventory,
    reservations: Sequence[Reservation],
) -> int:
    """Cells that automatic slots may use: the KV budget of the tightest device involved."""
    context = plan.sequence_context
    most = context * SLOT_LIMIT
    per_cell = sum(layer_kv_bytes(wish.header, settings.kv_cache_type), Fraction(0))
    if per_cell == 0:
        return most
    budget = Fraction(inventory.host.total_bytes) * HOST_KV_SHARE
    if plan.gpu_layers > 0:
        used = [c for c in plan.claims if c.device_id != inventory.host.id and c.size_bytes > 0]
        devices = {gpu.id: gpu for gpu in inventory.gpus}
        budget = sum(
            (
                (available_bytes(devices[claim.device_id], reservations) - claim.size_bytes)
                * GPU_KV_SHARE
                for claim in used
            ),
            Fraction(0),
        )
    return max(context, min(most, int(budget / per_cell)))


def _place(
    wish: LoadWish,
    context: int,
    slots: int,
    cells: int,
    settings: Settings,
    inventory: Inventory,
    reservations: Sequence[Reservation],
) -> LoadPlan | Refusal:
    header, options = wish.header, wish.options
    kv_type: KvCacheType = settings.kv_cache_type
    flash: FlashAttention = settings.flash_attention
    if flash == "off" and kv_type not in ("f32", "f16", "bf16"):
        return Refusal(
            "option",
            f"KV cache type {kv_type} needs flash attention, which is switched off",
        )
    if wish.embedding:
        # An encoder sees a whole input in one pass.
        batch = micro_batch = max(options.num_batch, context)
    else:
        batch = max(1, min(options.num_batch, cells))
        micro_batch = min(batch, 512)
    compute = compute_bytes(
        header, cells=cells, micro_batch=micro_batch, slots=slots, flash=flash != "off"
    )
    kv = [_ceil(per_cell * cells) for per_cell in layer_kv_bytes(header, kv_type)]
    weights = [*header.layer_bytes, *((0,) * (header.block_count - len(header.layer_bytes)))]
    layers = [w + k for w, k in zip(weights, kv, strict=False)]
    host_available = available_bytes(inventory.host, reservations)
    host_cache = 0
    if not wish.embedding:
        host_cache = min(
            settings.host_cache_bytes,
            HOST_CACHE_KV_MULTIPLE * sum(kv),
            int(host_available * HOST_CACHE_SHARE),
        )
    shape = _Shape(
        layer_bytes=(*layers, header.output_bytes),
        compute_bytes=compute,
        host_bytes=PROCESS_BYTES
        + header.input_bytes
        + header.other_bytes
        + wish.adapter_bytes
        + compute
        + host_cache,
    )
    usable = inventory.usable_gpus
    budgets = {gpu.id: _gpu_budget(gpu, settings, reservations) for gpu in usable}
    host_budget = int(host_available * FIT_SHARE)
    layout = _choose_layout(shape, usable, budgets, host_budget, options, settings)
    if isinstance(layout, Refusal):
        return layout
    claims = _claims(shape, layout, inventory.host)
    single = len([count for count in layout.counts if count]) == 1
    first_on_gpu = next((g for g, c in zip(layout.gpus, layout.counts, strict=True) if c), None)
    main_gpu = options.main_gpu
    if main_gpu is None or not usable:
        main_gpu = first_on_gpu.index if first_on_gpu is not None else 0
    biggest = max(claims, key=lambda claim: claim.size_bytes)
    idle_low, idle_high = IDLE_CELL_LIMITS
    return LoadPlan(
        sequence_context=context,
        automatic_context=contexts_to_try(
            replace(wish, options=replace(options, num_ctx=0), context_ceiling=0),
            settings,
            inventory,
        )[0],
        context_is_automatic=options.num_ctx <= 0 and settings.context_length <= 0,
        slots=slots,
        cells=cells,
        batch=batch,
        micro_batch=micro_batch,
        gpu_layers=layout.layers,
        main_gpu=main_gpu,
        split_mode="none" if single else "layer",
        tensor_split=_tensor_split(layout, usable) if layout.layers and not single else (),
        use_mmap=True if options.use_mmap is None else options.use_mmap,
        flash_attention=flash,
        kv_type=kv_type,
        idle_cells=0 if wish.embedding else max(idle_low, min(idle_high, cells // 16)),
        host_cache_bytes=host_cache,
        device_id=biggest.device_id,
        fully_on_gpu=bool(usable) and layout.layers == shape.layer_count,
        gpu_count=len(usable),
        claims=claims,
    )


def _gpu_budget(gpu: Device, settings: Settings, reservations: Sequence[Reservation]) -> int:
    available = int(available_bytes(gpu, reservations) * FIT_SHARE)
    return max(0, available - max(0, settings.gpu_overhead_bytes))


def _choose_layout(
    shape: _Shape,
    gpus: tuple[Device, ...],
    budgets: dict[str, int],
    host_budget: int,
    options: Options,
    settings: Settings,
) -> _Layout | Refusal:
    wanted = min(options.num_gpu, shape.layer_count) if options.num_gpu >= 0 else None
    most = shape.layer_count if wanted is None else wanted
    if not gpus:
        most = 0
    order = sorted(gpus, key=lambda gpu: (gpu.index != options.main_gpu, -budgets[gpu.id]))
    if not settings.sched_spread:
        for gpu in order[: 1 if options.main_gpu is not None else None]:
            layout = _Layout((gpu,), (most,))
            if most and _fits(shape, layout, budgets, host_budget):
                return layout
    for layers in range(most, 0, -1):
        for layout in _spreads(shape, layers, gpus, budgets):
            if _fits(shape, layout, budgets, host_budget):
                return layout
        if wanted is not None:
            return _exact_refusal(shape, options.num_gpu, layers, budgets, host_budget)
    if _fits(shape, _Layout((), ()), budgets, host_budget):
        return _Layout((), ())
    need = shape.host_bytes + sum(shape.layer_bytes)
    have = host_budget
    where = "memory"
    if gpus:
        where = "memory on the host alone, and the GPUs hold too little of it"
    return Refusal(
        "memory",
        f"needs {size_text(need)} of {where}; {size_text(have)} may be used",
        need,
        have,
    )


def _exact_refusal(
    shape: _Shape, num_gpu: int, layers: int, budgets: dict[str, int], host_budget: int
) -> Refusal:
    """Why exactly ``layers`` layers cannot be offloaded: the host's rest or the GPUs' part."""
    first = shape.layer_count - layers
    host_need = shape.host_bytes + sum(shape.layer_bytes[:first])
    if host_need > host_budget:
        return Refusal(
            "memory",
            f"with num_gpu {num_gpu} the host needs {size_text(host_need)}; "
            f"{size_text(host_budget)} may be used",
            host_need,
            host_budget,
        )
    have = sum(budgets.values())
    need = sum(shape.layer_bytes[first:]) + len(budgets) * (shape.compute_bytes + GPU_CONTEXT_BYTES)
    return Refusal(
        "memory",
        f"num_gpu {num_gpu} needs {size_text(need)} of GPU memory and {size_text(have)} may be "
        "used; without num_gpu as many layers as fit are offloaded",
        need,
        have,
    )


def _spreads(
    shape: _Shape, layers: int, gpus: tuple[Device, ...], budgets: dict[str, int]
) -> Iterable[_Layout]:
    """Ways to lay the last ``layers`` layers over the GPUs: in proportion to their room, then
    packed one after the other."""
    total = sum(budgets[gpu.id] for gpu in gpus)
    if total == 0:
        return
    bounds = [0]
    seen = 0
    for gpu in gpus:
        seen += budgets[gpu.id]
        bounds.append(round(Fraction(layers * seen, total)))
    yield _Layout(gpus, tuple(b - a for a, b in pairwise(bounds)))
    first = shape.layer_count - layers
    counts: list[int] = []
    for gpu in gpus:
        room = budgets[gpu.id] - shape.compute_bytes - GPU_CONTEXT_BYTES
        count = 0
        while first < shape.layer_count and shape.layer_bytes[first] <= room:
            room -= shape.layer_bytes[first]
            first += 1
            count += 1
        counts.append(count)
    if first == shape.layer_count:
        yield _Layout(gpus, tuple(counts))


def _fits(shape: _Shape, layout: _Layout, budgets: dict[str, int], host_budget: int) -> bool:
    host_bytes, per_gpu = _load_by_device(shape, layout)
    return host_bytes <= host_budget and all(
        size <= budgets[gpu.id] for gpu, size in zip(layout.gpus, per_gpu, strict=True)
    )


def _load_by_device(shape: _Shape, layout: _Layout) -> tuple[int, tuple[int, ...]]:
    first = shape.layer_count - layout.layers
    host = shape.host_bytes + sum(shape.layer_bytes[:first])
    per_gpu: list[int] = []
    for count in layout.counts:
        held = sum(shape.layer_bytes[first : first + count])
        per_gpu.append(held + shape.compute_bytes + GPU_CONTEXT_BYTES if count else 0)
        first += count
    return host, tuple(per_gpu)


def _claims(shape: _Shape, layout: _Layout, host: Device) -> tuple[Claim, ...]:
    host_bytes, per_gpu = _load_by_device(shape, layout)
    on_gpus = tuple(
        Claim(gpu.id, size) for gpu, size in zip(layout.gpus, per_gpu, strict=True) if size
    )
    return (*on_gpus, Claim(host.id, host_bytes))


def _tensor_split(layout: _Layout, gpus: tuple[Device, ...]) -> tuple[float, ...]:
    """Layer counts in llama.cpp's device order. Its split walks layers by cumulated share, so
    whole counts reproduce exactly this layout."""
    counts = {gpu.index: count for gpu, count in zip(layout.gpus, layout.counts, strict=True)}
    highest = max(gpu.index for gpu in gpus)
    return tuple(float(counts.get(index, 0)) for index in range(highest + 1))


def _ceil(value: Fraction) -> int:
    return -(-value.numerator // value.denominator)
