"""Single decisions of the memory planner."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.inference.inventory import Claim, Reservation
from agent.inference.memory import (
    FIT_SHARE,
    GIB,
    LoadPlan,
    LoadWish,
    Refusal,
    compute_bytes,
    kv_bytes,
    plan_load,
)
from agent.inference.options import Options

from .pool_support import MIB, header, inventory, settings

EIGHT_GIB = header(layers=32, layer_bytes=256 * MIB, train_context=262144)


def wish(summary=None, *, options=None, **kwargs):
    return LoadWish(header=summary or header(), options=options or Options(), **kwargs)


def plan(request, machine, *, config=None, reservations=()):
    outcome = plan_load(request, config or settings(), machine, reservations)
    assert isinstance(outcome, LoadPlan), outcome
    return outcome


def refusal(request, machine, *, config=None, reservations=()):
    outcome = plan_load(request, config or settings(), machine, reservations)
    assert isinstance(outcome, Refusal), outcome
    return outcome


def test_kv_size_follows_heads_lengths_and_type():
    summary = header(layers=2, heads_kv=2)
    assert kv_bytes(summary, "f16", 1000) == 2 * 2 * (32 + 32) * 2 * 1000
    assert kv_bytes(summary, "f32", 1000) == 2 * kv_bytes(summary, "f16", 1000)
    assert kv_bytes(summary, "q8_0", 1000) == 2 * 2 * 64 * 34 // 32 * 1000


def test_layers_without_attention_hold_no_kv():
    mixed = replace(header(layers=4), head_count_kv=(2, 0, 0, 2))
    assert kv_bytes(mixed, "f16", 64) == kv_bytes(header(layers=2), "f16", 64)


def test_without_flash_attention_the_score_matrix_is_counted():
    on = compute_bytes(header(), cells=4096, micro_batch=512, slots=1, flash=True)
    off = compute_bytes(header(), cells=4096, micro_batch=512, slots=1, flash=False)
    assert off - on >= 512 * 4096 * 8 * 4


@pytest.mark.parametrize(
    ("gpus", "context"),
    [((), 4096), ((22 * GIB,), 4096), ((24 * GIB,), 32768), ((24 * GIB, 24 * GIB), 262144)],
)
def test_the_automatic_context_follows_total_gpu_memory(gpus, context):
    summary = header(train_context=0)
    assert plan(wish(summary), inventory(*gpus, ram_bytes=64 * GIB)).sequence_context == context


def test_contexts_are_capped_by_training_and_never_below_four():
    small = header(train_context=512)
    assert plan(wish(small), inventory()).sequence_context == 512
    assert plan(wish(small, options=Options(num_ctx=9999)), inventory()).sequence_context == 512
    assert plan(wish(options=Options(num_ctx=1)), inventory()).sequence_context == 4


def test_the_setting_replaces_the_automatic_context():
    chosen = plan(wish(), inventory(), config=settings(context_length=1024))
    assert chosen.sequence_context == 1024
    assert not chosen.context_is_automatic
    vision = plan(wish(vision=True), inventory(), config=settings(context_length=1024))
    assert vision.sequence_context == 2048


def test_a_set_number_of_slots_is_exact_and_multiplies_the_cells():
    chosen = plan(wish(), inventory(), config=settings(num_parallel=3))
    assert (chosen.slots, chosen.cells) == (3, 3 * 4096)


def test_automatic_slots_reach_sixteen_for_a_small_model():
    chosen = plan(wish(), inventory())
    assert chosen.slots == 16
    assert chosen.cells == 16 * 4096
    assert 256 <= chosen.idle_cells <= 1024


def test_automatic_slots_shrink_with_the_kv_budget():
    thick = header(layers=32, heads_kv=64)
    chosen = plan(wish(thick), inventory(ram_bytes=12 * GIB))
    assert 1 <= chosen.slots < 16
    assert chosen.cells >= chosen.sequence_context


def test_an_encoder_takes_its_longest_input_in_one_batch_whose_cells_its_slots_share():
    chosen = plan(wish(header(train_context=2048), embedding=True), inventory())
    assert chosen.slots == 16
    assert chosen.cells == 2048
    assert chosen.batch == chosen.micro_batch == chosen.sequence_context == 2048
    assert chosen.host_cache_bytes == 0


def test_a_model_goes_to_the_single_gpu_with_most_room():
    chosen = plan(wish(EIGHT_GIB), inventory(12 * GIB, 16 * GIB))
    assert chosen.split_mode == "none"
    assert chosen.main_gpu == 1
    assert chosen.gpu_layers == 33
    assert chosen.fully_on_gpu
    assert chosen.device_id == "node:gpu1"


def test_a_model_too_big_for_one_gpu_is_spread_by_room():
    chosen = plan(wish(EIGHT_GIB), inventory(9 * GIB, 6 * GIB))
    assert chosen.split_mode == "layer"
    assert chosen.gpu_layers == 33
    assert sum(chosen.tensor_split) == 33
    assert chosen.tensor_split[0] > chosen.tensor_split[1] > 0


def test_spreading_can_be_asked_for():
    chosen = plan(wish(), inventory(16 * GIB, 16 * GIB), config=settings(sched_spread=True))
    assert chosen.split_mode == "layer"
    assert min(chosen.tensor_split) >= 4


def test_what_does_not_fit_the_gpu_stays_on_the_host():
    chosen = plan(wish(EIGHT_GIB), inventory(6 * GIB, ram_bytes=32 * GIB))
    assert 0 < chosen.gpu_layers < 33
    assert not chosen.fully_on_gpu
    assert {claim.device_id for claim in chosen.claims} == {"node:gpu0", "node:cpu"}


def test_without_a_usable_gpu_everything_is_on_the_cpu():
    machine = inventory(24 * GIB)
    unusable = replace(machine, gpus=(replace(machine.gpus[0], usable=False),))
    chosen = plan(wish(options=Options(num_gpu=99, main_gpu=5)), unusable)
    assert chosen.gpu_layers == 0
    assert chosen.sequence_context == 4096


def test_num_gpu_is_exact_and_refused_when_it_cannot_be():
    assert plan(wish(options=Options(num_gpu=3)), inventory(8 * GIB)).gpu_layers == 3
    assert plan(wish(options=Options(num_gpu=0)), inventory(8 * GIB)).gpu_layers == 0
    assert plan(wish(options=Options(num_gpu=999)), inventory(8 * GIB)).fully_on_gpu
    no = refusal(wish(EIGHT_GIB, options=Options(num_gpu=33)), inventory(4 * GIB))
    assert no.reason.startswith("num_gpu 33 needs 8.")


def test_main_gpu_chooses_the_gpu_and_must_exist():
    assert plan(wish(options=Options(main_gpu=0)), inventory(8 * GIB, 16 * GIB)).main_gpu == 0
    no = refusal(wish(options=Options(main_gpu=2)), inventory(8 * GIB, 16 * GIB))
    assert (no.kind, no.reason) == ("option", "main_gpu 2 does not exist; GPUs here: 0, 1")


def test_gpu_overhead_is_left_free():
    machine = inventory(12 * GIB)
    assert plan(wish(EIGHT_GIB), machine).fully_on_gpu
    crowded = plan(wish(EIGHT_GIB), machine, config=settings(gpu_overhead_bytes=3 * GIB))
    assert not crowded.fully_on_gpu


def test_an_automatic_context_is_lowered_before_layers_leave_the_gpu():
    thick = header(layers=32, layer_bytes=512 * MIB, heads_kv=32, train_context=262144)
    chosen = plan(wish(thick), inventory(48 * GIB, ram_bytes=256 * GIB))
    assert chosen.fully_on_gpu
    assert chosen.sequence_context < 262144
    assert chosen.automatic_context == 262144


def test_quantised_kv_without_flash_attention_is_refused_in_words():
    no = refusal(wish(), inventory(), config=settings(kv_cache_type="q8_0", flash_attention="off"))
    assert no.kind == "option"
    assert "flash attention" in no.reason


def test_four_fifths_of_what_is_free_is_the_limit():
    machine = inventory(ram_bytes=64 * GIB)
    need = plan(wish(EIGHT_GIB, options=Options(num_ctx=4096)), machine).size_bytes
    tight = inventory(ram_bytes=64 * GIB, free_bytes=int(EIGHT_GIB.file_bytes / FIT_SHARE))
    no = refusal(wish(EIGHT_GIB, options=Options(num_ctx=4096)), tight)
    assert no.need_bytes > no.have_bytes
    assert need > no.have_bytes


def test_a_refusal_names_need_and_have():
    no = refusal(wish(EIGHT_GIB), inventory(ram_bytes=4 * GIB))
    assert no.reason.startswith("needs 8.")
    assert no.reason.endswith("3.2 GiB may be used")


def test_memory_promised_to_a_runner_that_still_loads_is_taken():
    held = Reservation(runner_id="x", claims=(Claim("node:cpu", 10 * GIB),))
    refusal(wish(EIGHT_GIB), inventory(), reservations=(held,))
    plan(wish(EIGHT_GIB), inventory())


def test_memory_already_visible_as_used_is_not_counted_twice():
    held = Reservation(runner_id="x", claims=(Claim("node:cpu", 5 * GIB),), visible=True)
    machine = inventory(ram_bytes=32 * GIB, free_bytes=13 * GIB)
    plan(wish(EIGHT_GIB), machine, reservations=(held,))
    refusal(wish(EIGHT_GIB), machine, reservations=(replace(held, visible=False),))
