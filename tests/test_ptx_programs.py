"""What the simulator does across lanes, in memory and at branches, on hand-written PTX."""

import numpy as np
import pytest
import torch

from tests.ptx import counts
from tests.ptx.execute import Program
from tests.ptx.parse import Fault, Unsupported, parse
from tests.ptx.snippet import run

THREADS = 96
LANES = list(range(THREADS))
RANDOM = np.random.default_rng(0)
WORDS = RANDOM.integers(0, 2**32, THREADS, np.uint64).tolist()
TRUTHS = RANDOM.integers(0, 2, THREADS).tolist()


def warps(values):
    return [values[first : first + 32] for first in range(0, len(values), 32)]


def signed(word):
    return word - 2**32 if word >> 31 else word


def test_results_in_several_registers():
    got = run("mov.b64 {{{low}, {high}}}, {a};", {"a": ("b64", [(7 << 40) + 5] * 32)},
              {"low": "b32", "high": "b32"})  # fmt: skip
    assert (got["low"][0], got["high"][0]) == (5, 7 << 8)
    got = run("mov.b32 {d}, {{{a}, {b}}};", {"a": ("b16", [1] * 32), "b": ("b16", [2] * 32)},
              {"d": "b32"})  # fmt: skip
    assert got["d"][0] == 1 + (2 << 16)
    values = {"a": ("s32", LANES), "b": ("s32", [40] * THREADS)}
    got = run("setp.lt.s32 {p}|{q}, {a}, {b};", values, {"p": "pred", "q": "pred"})
    assert got["p"] == [lane < 40 for lane in LANES]
    assert got["q"] == [lane >= 40 for lane in LANES]
    halves = {"a": ("f32", [0x40000000] * 32), "b": ("f32", [0xBF800000] * 32)}
    assert run("cvt.rn.bf16x2.f32 {d}, {a}, {b};", halves, {"d": "b32"})["d"][0] == 0x4000BF80
    assert run("cvt.rn.f16x2.f32 {d}, {a}, {b};", halves, {"d": "b32"})["d"][0] == 0x4000BC00


def test_registers_of_another_width_and_immediates():
    values = {"a": ("b32", WORDS)}
    got = run("cvt.u16.u32 {d}, {a};", values, {"d": "u16"})["d"]
    assert got == [word & 0xFFFF for word in WORDS]
    got = run("add.f32 {d}, 0f3F800000, 0fC0000000;", values, {"d": "f32"})["d"]
    assert set(got) == {0xBF800000}
    got = run("and.b32 {d}, {a}, -256;", values, {"d": "b32"})["d"]
    assert got == [word & 0xFFFFFF00 for word in WORDS]
    got = run("mov.u32 {d}, %laneid;", values, {"d": "b32"})["d"]
    assert got == [lane % 32 for lane in LANES]


@pytest.mark.parametrize(
    ("mode", "distance", "clamp", "source"),
    [
        ("bfly", 5, 31, lambda lane: lane ^ 5),
        ("bfly", 16, 0x100F, lambda lane: lane & 15),
        ("up", 3, 0, lambda lane: lane - 3 if lane >= 3 else lane),
        ("down", 4, 31, lambda lane: lane + 4 if lane + 4 < 32 else lane),
        ("down", 4, 0x180F | 7, lambda lane: lane + 4 if (lane + 4) // 8 == lane // 8 else lane),
        ("idx", 9, 31, lambda lane: 9),
    ],
)
def test_shuffles(mode, distance, clamp, source):
    text = f"shfl.sync.{mode}.b32 {{d}}, {{a}}, {distance}, {clamp}, -1;"
    got = run(text, {"a": ("b32", WORDS)}, {"d": "b32"})["d"]
    assert warps(got) == [[warp[source(lane)] for lane in range(32)] for warp in warps(WORDS)]


def test_votes():
    given = {"p": ("pred", TRUTHS)}
    got = run("vote.sync.ballot.b32 {d}, {p}, -1;", given, {"d": "b32"})["d"]
    for words, truths in zip(warps(got), warps(TRUTHS), strict=True):
        assert set(words) == {sum(bit << lane for lane, bit in enumerate(truths))}
    got = run("vote.sync.ballot.b32 {d}, !{p}, -1;", given, {"d": "b32"})["d"]
    assert got[0] == 2**32 - 1 - sum(bit << lane for lane, bit in enumerate(TRUTHS[:32]))
    one = [1] * 40 + [0] * 24
    got = run("vote.sync.any.pred {d}, {p}, -1;", {"p": ("pred", one)}, {"d": "pred"})["d"]
    assert got == [1] * 64
    got = run("vote.sync.all.pred {d}, {p}, -1;", {"p": ("pred", one)}, {"d": "pred"})["d"]
    assert got == [1] * 32 + [0] * 32


@pytest.mark.parametrize(
    ("opcode", "function"),
    [
        ("add.s32", lambda x: sum(x) % 2**32),
        ("max.s32", lambda x: max(map(signed, x)) % 2**32),
        ("min.u32", min),
        ("or.b32", lambda x: int(np.bitwise_or.reduce(x))),
        ("xor.b32", lambda x: int(np.bitwise_xor.reduce(x))),
    ],
)
def test_reductions(opcode, function):
    got = run(f"redux.sync.{opcode} {{d}}, {{a}}, -1;", {"a": ("b32", WORDS)}, {"d": "b32"})["d"]
    assert [set(warp) for warp in warps(got)] == [{function(warp)} for warp in warps(WORDS)]


@pytest.mark.parametrize("half", ["f16", "bf16"])
def test_products_of_matrices(half):
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16}[half]
    a, b, c = torch.randn(16, 16).to(dtype), torch.randn(16, 8).to(dtype), torch.randn(16, 8)

    def pairs(matrix, places):
        """Returns, for each lane, the two neighbours at its place as one word."""
        words = []
        for lane in range(32):
            first, second = places(lane // 4, 2 * (lane % 4))
            bits = torch.stack((matrix[first], matrix[second])).view(torch.int16).tolist()
            words.append(bits[0] % 2**16 | bits[1] % 2**16 << 16)
        return "b32", words

    sources = {}
    for i in range(4):
        row, column = 8 * (i % 2), 8 * (i // 2)
        sources[f"a{i}"] = pairs(
            a, lambda g, t, r=row, k=column: ((g + r, t + k), (g + r, t + k + 1))
        )
    for i in range(2):
        sources[f"b{i}"] = pairs(b, lambda g, t, k=8 * i: ((t + k, g), (t + k + 1, g)))
    at = [
        [(lane // 4 + 8 * (i // 2), 2 * (lane % 4) + i % 2) for lane in range(32)] for i in range(4)
    ]
    for i in range(4):
        bits = torch.stack([c[place] for place in at[i]]).view(torch.int32).tolist()
        sources[f"c{i}"] = ("f32", [word % 2**32 for word in bits])
    names = (
        ", ".join(f"{{{letter}{i}}}" for i in range(n))
        for letter, n in zip("dabc", (4, 4, 2, 4), strict=True)
    )
    operands = ", ".join("{{" + group + "}}" for group in names)
    got = run(
        f"mma.sync.aligned.m16n8k16.row.col.f32.{half}.{half}.f32 {operands};",
        sources,
        {f"d{i}": "f32" for i in range(4)},
    )
    expected = (a.double() @ b.double() + c.double()).float()
    for i in range(4):
        bits = torch.tensor(got[f"d{i}"]).to(torch.int32).view(torch.float32)
        assert torch.equal(bits, torch.stack([expected[place] for place in at[i]]))


def test_part_of_a_warp_is_refused():
    text = """
        setp.lt.s32 %p60, %r0, 40;
        @%p60 shfl.sync.bfly.b32 {d}, {a}, 1, 31, -1;
    """
    with pytest.raises(Fault, match="only some lanes of a warp"):
        run(text, {"a": ("b32", WORDS)}, {"d": "b32"})
    with pytest.raises(Unsupported, match="of the lanes 0xff"):
        run("redux.sync.add.s32 {d}, {a}, 255;", {"a": ("b32", WORDS)}, {"d": "b32"})


def test_loads_and_stores_of_several_and_of_signed():
    text = """
        mov.b32 %r60, global_smem;
        shl.b32 %r61, %r0, 4;
        add.s32 %r60, %r60, %r61;
        xor.b32 %r62, {a}, -1;
        st.shared.v4.b32 [%r60+16], {{{a}, %r62, 7, {a}}};
        ld.shared.v2.b64 {{%rd60, %rd61}}, [%r60 + 16];
        mov.b64 {{%r63, {x}}}, %rd60;
        mov.b64 {{{y}, %r63}}, %rd61;
        ld.shared.s8 {z}, [%r60+17];
        ld.shared.u16 {w}, [%r60+18];
    """
    results = {"x": "b32", "y": "b32", "z": "s32", "w": "u32"}
    got = run(text, {"a": ("b32", WORDS)}, results)
    assert got["x"] == [word ^ 0xFFFFFFFF for word in WORDS]
    assert set(got["y"]) == {7}
    byte = [word >> 8 & 255 for word in WORDS]
    assert got["z"] == [(b - 256 if b > 127 else b) % 2**32 for b in byte]
    assert got["w"] == [word >> 16 for word in WORDS]


@pytest.mark.parametrize("form", ["x1", "x2", "x4", "x4.trans", "x2.trans"])
def test_matrices_of_sixteen_bits(form):
    # A matrix that is stored and loaded in the same form comes back; a lane holds two neighbours
    # of its row, transposed of its column.
    number = int(form[1])
    names = [f"{{a{i}}}" for i in range(number)], [f"{{d{i}}}" for i in range(number)]
    given, loaded = ("{{" + ", ".join(part) + "}}" for part in names)
    address = "shl.b32 %r60, %r0, 4;"
    words = RANDOM.integers(0, 2**32, (number, 32), np.uint64)
    sources = {f"a{i}": ("b32", words[i].tolist()) for i in range(number)}
    results = {f"d{i}": "b32" for i in range(number)} | {"w": "b32"}
    got = run(
        f"""{address}
        stmatrix.sync.aligned.m8n8.{form}.shared.b16 [%r60], {given};
        ldmatrix.sync.aligned.m8n8.{form}.shared.b16 {loaded}, [%r60];
        shl.b32 %r61, %r0, 2;
        ld.shared.b32 {{w}}, [%r61];
        """,
        sources,
        results,
    )
    for i in range(number):
        assert got[f"d{i}"] == words[i].tolist()
    # The 32 words of the first matrix, row after row.
    halves = np.zeros((8, 8), np.uint64)
    for lane in range(32):
        for half in (0, 1):
            row, column = lane // 4, 2 * (lane % 4) + half
            place = (column, row) if "trans" in form else (row, column)
            halves[place] = words[0, lane] >> np.uint64(16 * half) & np.uint64(0xFFFF)
    expected = halves[:, 0::2] | halves[:, 1::2] << np.uint64(16)
    assert got["w"] == expected.ravel().tolist()


def test_atomic_operations_take_turns():
    text = """
        and.b32 %r60, %r0, 3;
        shl.b32 %r60, %r60, 2;
        setp.lt.s32 %p60, %r0, 4;
        @%p60 st.shared.b32 [%r60], 100;
        bar.sync 0;
        atom.shared.add.u32 {d}, [%r60], {a};
        bar.sync 0;
        atom.shared.max.s32 {e}, [%r60], {a};
        bar.sync 0;
        ld.shared.b32 {f}, [%r60];
    """
    values = [lane * 3 for lane in LANES]
    got = run(text, {"a": ("s32", values)}, {"d": "b32", "e": "b32", "f": "b32"})
    totals = [100, 100, 100, 100]
    for lane, value in enumerate(values):
        assert got["d"][lane] == totals[lane % 4]
        totals[lane % 4] += value
    assert got["f"] == [max(totals[lane % 4], 95 * 3) for lane in LANES]
    assert got["e"][:4] == totals


def test_lanes_that_branch_apart_meet_again():
    text = """
        mov.u32 {d}, 0;
        and.b32 %r60, %r0, 7;
    $LOOP:
        setp.eq.b32 %p60, %r60, 0;
        @%p60 bra $DONE;
        add.s32 {d}, {d}, %r60;
        sub.s32 %r60, %r60, 1;
        bra.uni $LOOP;
    $DONE:
        setp.gt.s32 %p61, {d}, 5;
        @!%p61 bra $ELSE;
        add.s32 {d}, {d}, 1000;
        bra $END;
    $ELSE:
        add.s32 {d}, {d}, 2000;
    $END:
        shfl.sync.idx.b32 {e}, {d}, 7, 31, -1;
    """
    got = run(text, {"a": ("b32", WORDS)}, {"d": "s32", "e": "s32"})
    sums = [n * (n + 1) // 2 for n in (lane % 8 for lane in LANES)]
    assert got["d"] == [total + (1000 if total > 5 else 2000) for total in sums]
    assert set(got["e"]) == {28 + 1000}


def test_a_loop_without_end_is_a_fault(monkeypatch):
    monkeypatch.setattr("tests.ptx.execute.MOST_BLOCKS", 100)
    with pytest.raises(Fault, match="does not end"):
        run("$L: bra $L;", {"a": ("b32", WORDS)}, {"d": "b32"})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("setp.lt.s32 %p60, %r0, 32; @%p60 bra $L; bar.sync 0; $L:", "others have ended"),
        (
            "setp.lt.s32 %p60, %r0, 32; @%p60 bra $L; bar.sync 0; bra $M; $L: bar.sync 0; $M:",
            "different barriers",
        ),
    ],
)
def test_barriers_that_some_threads_never_reach(text, found):
    with pytest.raises(Fault, match=found):
        run(text, {"a": ("b32", WORDS)}, {"d": "b32"})


@pytest.mark.parametrize(
    "text",
    ["tex.1d.v4.f32.s32 {d}, {a};", "add.rz.f32 {d}, {a}, {a};", "bar.sync 1, 64;",
     "fma.rn.f16x2 {d}, {a}, {a}, {a};", "ld.b32 {d}, [%rd0];"],
)  # fmt: skip
def test_what_is_not_simulated_is_refused(text):
    with pytest.raises(Unsupported):
        run(text, {"a": ("b32", WORDS)}, {"d": "b32"})


def test_programs_have_their_own_shared_memory_and_place():
    module = """
    .visible .entry k(.param .u64 k_param_0)
    .reqntid 32
    {
    .reg .b32 %r<9>; .reg .b64 %rd<9>;
    mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ctaid.y; mov.u32 %r3, %nctaid.x; mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r1;
    shl.b32 %r6, %r4, 2;
    st.shared.b32 [%r6], %r5;
    ld.shared.b32 %r7, [%r6];
    mad.lo.s32 %r8, %r5, 32, %r4;
    ld.param.b64 %rd1, [k_param_0];
    mad.wide.u32 %rd1, %r8, 4, %rd1;
    st.global.b32 [%rd1], %r7;
    ret;
    }
    """
    out = torch.zeros(3 * 5 * 32, dtype=torch.int32)
    address = np.array([out.data_ptr()], np.uint64).view(np.uint8)
    counted = Program(parse(module)).run((3, 5, 1), address, [out], 128)
    assert out.tolist() == [program for program in range(15) for _ in range(32)]
    assert counted.instructions == 15 * 13
    assert (counted.stores, counted.store_sectors) == (15, 15 * 4)
    assert (counted.shared_requests, counted.shared_wavefronts) == (30, 30)


@pytest.mark.parametrize(
    ("addresses", "nbytes", "expected"),
    [
        ([4 * i for i in range(32)], 4, 1),
        ([0] * 32, 4, 1),
        ([8 * i for i in range(32)], 4, 2),
        ([128 * i for i in range(32)], 4, 32),
        (list(range(32)), 1, 1),
        ([8 * i for i in range(32)], 8, 2),
        ([16 * i for i in range(32)], 16, 4),
        ([128 * i for i in range(32)], 16, 32),
    ],
)
def test_wavefronts_of_shared_memory(addresses, nbytes, expected):
    assert counts.wavefronts(np.arange(32), np.array(addresses), nbytes) == expected


def test_sectors_of_each_warp():
    lanes = np.array([0, 1, 2, 40, 41])
    assert counts.sectors(lanes, np.array([0, 31, 32, 0, 4])) == 3
    assert counts.sectors(np.arange(32), 4 * np.arange(32)) == 4
    assert counts.sectors(np.arange(32), 64 * np.arange(32)) == 32
    assert counts.most_on_one(np.arange(64), np.array([5] * 32 + list(range(32)))) == 33
