"""Parsing compiled programs, from short texts in the notations of the compilers."""

import pytest

from vit_jax.planning import hlo
from vit_jax.planning.collectives import bytes_by_kind, find_collectives, group_size
from vit_jax.planning.estimates import estimate

# TPU: no trip counts; one collective is distributed over fusions; a reduce-scatter is a fusion; a
# collective may run on the SparseCores. The metadata of a kernel may have several lines.
TPU = """\
HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%start (p: bf16[1,16,64]) -> (bf16[1,16,64], bf16[1,32,64]) {
  %p = bf16[1,16,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.1 = bf16[1,32,64]{2,1,0:T(8,128)(2,1)} all-gather(%p), channel_id=9, replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_1'}, dimensions={1}, backend_config={"async_collective_fusion_config":{"flag_start":"-1"}}
  ROOT %custom-call.1 = (bf16[1,16,64]{2,1,0}, bf16[1,32,64]{2,1,0}, s32[2]{0:S(4)}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%step (p.1: bf16[1,16,64]) -> bf16[1,32,64] {
  %p.1 = bf16[1,16,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[1,32,64]{2,1,0:T(8,128)(2,1)S(1)} all-gather(%p.1), channel_id=9, replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_1'}, dimensions={1}, backend_config={"async_collective_fusion_config":{"flag_start":"2"}}
}

%offloaded (q: bf16[32]) -> bf16[128] {
  %q = bf16[32]{0} parameter(0)
  ROOT %all-gather.3 = bf16[128]{0} all-gather(%q), channel_id=3, replica_groups={{0,1,2,3}}, dimensions={0}
}, execution_thread="sparsecore"

%all-reduce-scatter.8 (i: f32[32,64]) -> f32[16,64] {
  %i = f32[32,64]{1,0} parameter(0)
  ROOT %all-reduce.1 = f32[32,64]{1,0} all-reduce(%i), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%add
}

%condition (s: (s32[], bf16[1,16,64])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
  %s = (s32[]{:T(128)}, bf16[1,16,64]{2,1,0}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%s), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}

%body (s.1: (s32[], bf16[1,16,64])) -> (s32[], bf16[1,16,64]) {
  %one = s32[]{:T(128)} constant(1)
  %s.1 = (s32[]{:T(128)}, bf16[1,16,64]{2,1,0}) parameter(0)
  %i.2 = s32[]{:T(128)} get-tuple-element(%s.1), index=0
  %next = s32[]{:T(128)} add(%i.2, %one), backend_config={"flag_configs":[]}
  %x.1 = bf16[1,16,64]{2,1,0} get-tuple-element(%s.1), index=1
  %begun = (bf16[1,16,64]{2,1,0}, bf16[1,32,64]{2,1,0}, s32[2]{0:S(4)}) fusion(%x.1), kind=kCustom, calls=%start
  %worked = bf16[1,32,64]{2,1,0} fusion(%x.1), kind=kOutput, calls=%step, metadata={op_name="jit(step)/dot_general"}, backend_config={"window_config":{"estimated_cycles":"1000"}}
  %aside = ((bf16[32]{0}), bf16[128]{0}) custom-call-start(%x.1), async_execution_thread="sparsecore", called_computations={%offloaded}
  %asided = bf16[128]{0} custom-call-done(%aside), called_computations={%offloaded}
  %kernel = bf16[64,64]{1,0} custom-call(%x.1), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}, metadata={op_name="jit(step)/kernel"}
  ROOT %tuple = (s32[]{:T(128)}, bf16[1,16,64]{2,1,0}) tuple(%next, %x.1)
}

ENTRY %main (a: bf16[1,16,64]) -> f32[16,64] {
  %a = bf16[1,16,64]{2,1,0} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %init = (s32[]{:T(128)}, bf16[1,16,64]{2,1,0}) tuple(%zero, %a)
  %loop = (s32[]{:T(128)}, bf16[1,16,64]{2,1,0}) while(%init), condition=%condition, body=%body
  %g = f32[32,64]{1,0} convert(%a), backend_config={"window_config":{"estimated_cycles":"500"}}
  %sorted = f32[32,64]{1,0} sort(%g), dimensions={0}
  ROOT %r = f32[16,64]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.8
}
"""  # noqa: E501

# CPU and GPU: with trip counts; asynchronous pairs are counted at their start.
CPU = """\
HloModule jit_step

body {
}

%body (s: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %s = (s32[], f32[8,4]{1,0}) parameter(0)
  %x = f32[8,4]{1,0} get-tuple-element(%s), index=1
  %r = f32[8,4]{1,0} all-reduce(%x), replica_groups=[2,4]<=[8], to_apply=%add
  %p = (f32[8,4]{1,0}, f32[8,4]{1,0}, u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}
  %q = f32[8,4]{1,0} collective-permute-done(%p)
  %h = f32[2,4]{1,0} reduce-scatter(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  ROOT %t = (s32[], f32[8,4]{1,0}) tuple(%i, %q)
}

ENTRY %main (a: f32[8,4]) -> f32[8,4] {
  %w = (s32[], f32[8,4]{1,0}) while(%a), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %g = (f32[1,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%a), replica_groups={}, dimensions={0}
  %u = (s32[], f32[8,4]{1,0}) while(%a), condition=%unreadable, body=%body2
  ROOT %o = f32[8,4]{1,0} all-gather-done(%g)
}
"""  # noqa: E501


def test_collectives_of_a_tpu_program():
    found = find_collectives(hlo.Module(TPU), devices=4)
    assert [(c.kind, c.group, c.times) for c in found] == [
        ("all-gather", 2, 12),
        ("reduce-scatter", 2, 1),
        ("all-gather", 4, 12),
    ]
    # A device receives half of 32 x 64 values in bfloat16, and three quarters of 128, twelve times.
    assert bytes_by_kind(found) == {
        "all-gather": 12 * (32 * 64 * 2 / 2 + 128 * 2 * 3 / 4),
        "reduce-scatter": 32 * 64 * 4 / 2,
    }


def test_cycles_and_operations_without_an_estimate():
    found = estimate(hlo.Module(TPU))
    assert found.cycles == 12 * 1000 + 500
    assert found.by_source == {"dot_general": 12_000, "convert": 500}
    assert found.custom_calls == {"tpu_custom_call": 12}
    assert found.other == {"sort": 1}
    assert found.loops == 0


def test_kernels_are_estimated_by_their_schedules_or_their_traffic():
    """64 x 64 values in bfloat16 are written, 16 x 64 are read: 10,240 bytes."""
    module = hlo.Module(TPU)
    scheduled = estimate(module, {"kernel": 30})
    assert scheduled.cycles == 12 * (1000 + 30) + 500
    assert scheduled.custom_calls == {}
    found = estimate(module, {"kernel": 30}, bytes_per_cycle=100)
    assert found.cycles == pytest.approx(12 * (1000 + 102.4) + 500)
    groups = {group.name: group for group in found.groups}
    assert groups["kernel kernel"].memory_cycles == pytest.approx(12 * 102.4)
    assert groups["kernel kernel"].bound == "memory"
    # A fusion reads 2 KiB; its result lies in VMEM in part.
    assert groups["elementwise"].bound == "compute"


def test_collectives_of_a_cpu_program():
    size = 8 * 4 * 4
    assert bytes_by_kind(find_collectives(hlo.Module(CPU), devices=8)) == {
        "all-reduce": 3 * 2 * size * 3 / 4,
        "collective-permute": 3 * size,
        "reduce-scatter": 3 * size * 3 / 4,
        "all-gather": size * 7 / 8,
    }


def test_loops_of_unknown_length():
    assert estimate(hlo.Module(CPU)).loops == 1


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("replica_groups={{0,1,2},{3,4,5}}", 3),
        ("replica_groups=[16,8]<=[8,16]T(1,0)", 8),
        ("replica_groups=mesh['a'=4,'b'=2] {'a','b'}", 8),
        ("replica_groups=mesh['a'=4,'b'=2] {'a':(1)2}", 2),
        ("replica_groups={}", 64),
    ],
)
def test_group_size(text, size):
    assert group_size(text, devices=64) == size


def test_link_time():
    collective = find_collectives(hlo.Module(TPU), devices=4)[0]
    # A ring has two links per device: 12 x 2 KiB over 2 x 1 KiB/s.
    assert collective.seconds(1024.0, 1.0) == pytest.approx(12 * 2048 / 2048)
