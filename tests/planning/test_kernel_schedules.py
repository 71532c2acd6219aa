"""Cycles of kernels, from listings in the notation of the TPU compiler."""

from vit_jax.planning import kernel_schedules

# A grid of five steps and two of its pipeline, an inner loop of three, waits, a longer comment.
LISTING = """\
LH: loop header
= control target key end

     0   :  { %s1 = inlined_call_operand.hbm [shape: bf16[128,64,768], index: 0] }
   0x1   :  { %s2 = sst [smem:[#allocation70_spill]] %s1 } /* Start region 1 */
   0x2 LB: > { %s3 = sadd.s32 1, %s2
second_minor_factor: 1 */ }
   0x3   :  {} /* End region 14 */
   0x4 LB: >> { %v1 = vld [vmem:[%s2] sm:$0xff] }
   0x5   :  {}
   0x6   : >> { %p1 = scmp.ge.s32.totalorder %s4, 3 /* loop exit test */  ;;  %s5 = smov.u32 0 }
   0x7 PF: > { %p2 = scmp.ge.s32.totalorder %s3, 7 /* loop exit test */ }
   0x8   : > { %46 = sbr.rel (!%p2) target = $region257 }
   0x9 LE:  { %s9 = smov.u32 2 }
"""


def test_bundles_are_multiplied_by_the_trips_of_their_loops():
    assert kernel_schedules.count_cycles(LISTING) == 3 + 7 * (4 + 3 * 3)


def test_a_loop_of_unknown_length():
    assert kernel_schedules.count_cycles(LISTING.replace("/* loop exit test */", "")) is None


def test_without_libtpu_there_are_no_schedules():
    kernel_schedules.forget()
    assert kernel_schedules.kernel_cycles({"kernel"}) == {}
