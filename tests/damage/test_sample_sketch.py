"""The sketch of the samples: nothing is lost while rows fit in; beyond, it is right on average and says how far off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairtrim import ChannelGroup, ChannelPlace, DamageTable, InputError, collect_damage
from fairtrim.criteria import Criterion, MeanDamage, WorstGroup
from fairtrim.damage import moments as moments_module
from fairtrim.damage import sample_sketch as sketch_module
from fairtrim.damage.moments import Moments, resolved_interactions
from fairtrim.damage.sample_sketch import SampleSketch, SketchedRows, Sketches
from fairtrim.processes import Processes
from fairtrim.selection import Pool, joint_selection
from fairtrim_adapters.torch_pruning import MeanDamageImportance, WorstGroupImportance
from tests.networks import CASES
from tests.shares import in_processes

N_SUMS = 32
KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "independent": lambda x: x,
    "with a mean": lambda x: x + 1,
    "one direction": lambda x: 0.3 * x + x[:, :1],
    "two directions": lambda x: 0.3 * x + x[:, :1] * (-1) ** torch.arange(x.shape[1]),  # sums over channels cancel
    "few large rows": lambda x: x * (1.5 * x[:, :1]).exp(),
}


def _rows(kind: str, n_rows: int, n_columns: int = 9, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return KINDS[kind](torch.randn(n_rows, n_columns, dtype=torch.float64, generator=generator))


def _sketched(rows: Tensor, name: str = "test", sizes: list[int] | None = None, n_sums: int = N_SUMS) -> Tensor:
    sketch = SketchedRows(n_sums, name)
    for part in rows.split(sizes if sizes is not None else [len(rows)]):
        sketch.add(part)
    assert sketch.n_rows == len(rows)
    return sketch.filled(rows.shape[1])


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sketches that are full soon."""
    monkeypatch.setattr(sketch_module, "SELECTION_ROWS", 48)
    monkeypatch.setattr(sketch_module, "HELD_OUT_ROWS", N_SUMS)
    yield


@pytest.mark.parametrize("n_rows", [0, 1, 7, N_SUMS - 1, N_SUMS])
def test_rows_that_fit_in_are_kept_as_they_are(n_rows: int) -> None:
    rows = _rows("with a mean", n_rows)
    assert torch.equal(_sketched(rows).double(), rows)


@pytest.mark.parametrize("n_rows", [N_SUMS + 1, 2 * N_SUMS, 3 * N_SUMS + 5])
def test_split_into_batches_leaves_no_trace(n_rows: int) -> None:
    rows = _rows("few large rows", n_rows)
    whole = _sketched(rows)
    assert whole.shape == (N_SUMS, 9)
    generator = torch.Generator().manual_seed(n_rows)
    for size in (1, 2, 7, N_SUMS - 1, N_SUMS, N_SUMS + 1, n_rows - 1):
        sizes = [size] * (n_rows // size) + ([n_rows % size] if n_rows % size else [])
        torch.testing.assert_close(_sketched(rows, sizes=sizes), whole, rtol=1e-12, atol=1e-12)
    cuts = torch.randperm(n_rows - 1, generator=generator)[:6].sort().values + 1
    sizes = [int(size) for size in torch.diff(cuts, prepend=torch.tensor([0]), append=torch.tensor([n_rows]))]
    torch.testing.assert_close(_sketched(rows, sizes=sizes), whole, rtol=1e-12, atol=1e-12)


def _within_errors(estimates: Tensor, truth: Tensor, bound: float = 4.5) -> None:
    """The mean of independent estimates (draws, ...) is the truth up to its standard error."""
    error = estimates.std(0) / len(estimates) ** 0.5
    assert float(error.max()) > 0
    z = (estimates.mean(0) - truth) / error.clamp_min(1e-12)
    assert float(z.abs().max()) < bound


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_rows", [N_SUMS + 9, 4 * N_SUMS])
def test_gram_matrix_of_the_sums_is_right_on_average(kind: str, n_rows: int) -> None:
    rows = _rows(kind, n_rows)
    grams = torch.stack([(s := _sketched(rows, f"draw {draw}")).T @ s for draw in range(250)])
    _within_errors(grams, rows.T @ rows)


@pytest.mark.parametrize(
    "shares",
    [(5, 20), (0, 70, 0), (N_SUMS, 2 * N_SUMS), (2 * N_SUMS, 3 * N_SUMS), (13, 50, 44), (N_SUMS, N_SUMS, 2 * N_SUMS)],
    ids=str,
)
def test_sketches_of_several_processes_are_right_on_average(shares: tuple[int, ...]) -> None:
    """Also where the shares are multiples of m, so that rows of the same number meet in one sum."""
    rows = _rows("with a mean", sum(shares))
    parts = rows.split(list(shares))

    def merged(draw: int) -> Tensor:
        def work(processes: Processes) -> Tensor:
            sketch = SketchedRows(N_SUMS, f"{draw}/{processes.rank}")
            sketch.add(parts[processes.rank])
            total = sketch.merged(processes, 9)
            assert total.n_rows == len(rows)
            return total.filled(9)

        found = in_processes([work] * len(shares))
        assert all(torch.equal(sums, found[0]) for sums in found)
        return found[0]

    if len(rows) <= N_SUMS:
        assert torch.equal(merged(0), rows)
        return
    grams = torch.stack([(s := merged(draw)).T @ s for draw in range(200)])
    _within_errors(grams, rows.T @ rows)


# The standard error ---------------------------------------------------------------------------------------


class Example:
    """Rows of four sensitive groups and their exact Gram matrices."""

    def __init__(self, kind: str, sizes: tuple[int, ...] = (40, 90, 200, 330), n_columns: int = 20) -> None:
        self.rows = _rows(kind, sum(sizes), n_columns)
        self.member = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        self.counts = torch.tensor(sizes, dtype=torch.float64)
        self.exact = torch.stack([(part := self.rows[self.member == g]).T @ part / n for g, n in enumerate(sizes)])

    def sketch(self, draw: int) -> SampleSketch:
        """Another order of the samples, and other signs."""
        order = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(draw))
        sketches = Sketches(self.rows.shape[1], 2**30, rank=draw)
        sketches.grow(len(self.counts))
        for g in range(len(self.counts)):
            sketches.add(g, self.rows[order][self.member[order] == g])
        curvature = torch.diagonal(self.exact, dim1=1, dim2=2)
        return sketches.sketch(list(range(len(self.counts))), self.counts, curvature)

    def square(self, columns: Tensor) -> Tensor:
        return self.exact[:, columns][:, :, columns].sum((1, 2))


MIXING = torch.cat(
    [
        torch.eye(4, dtype=torch.float64),
        torch.tensor([[0.0, 0.3, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64),  # pooled
        0.6 * torch.eye(4, dtype=torch.float64)[2:] + 0.1,  # shrunk
    ]
)


@pytest.mark.parametrize("kind", KINDS)
def test_standard_error_is_honest(kind: str, small: None) -> None:
    """Over draws and sets R: right on average, two errors hold about 95 %; pooled groups err independently."""
    example = Example(kind)
    generator = torch.Generator().manual_seed(7)
    z = []
    for draw in range(150):
        sketch = example.sketch(draw).mixed(MIXING)
        columns = torch.randperm(20, generator=generator)[: int(torch.randint(4, 21, (), generator=generator))]
        estimate, error = sketch.square(columns)
        truth = MIXING @ example.square(columns)
        torch.testing.assert_close(estimate[0], truth[0], rtol=1e-9, atol=1e-12)  # 40 rows are all there
        assert error[0] == 0 and bool((error[1:] > 0).all())
        z.append(((estimate - truth) / error)[1:])
    deviations = torch.stack(z)
    spread = deviations.square().mean(0).sqrt()
    assert float(spread.min()) > 0.75 and float(spread.max()) < 1.4
    assert 0.88 < float((deviations.abs() < 2).double().mean()) < 0.99
    assert float((deviations.mean(0) / spread).abs().max()) < 4 / 150**0.5


def test_single_channels_are_known_exactly(small: None) -> None:
    example = Example("with a mean")
    sketch = example.sketch(0)
    for column in range(20):
        estimate, error = sketch.square(torch.tensor([column]))
        assert not error.any()
        torch.testing.assert_close(estimate, example.exact[:, column, column], rtol=1e-9, atol=0)
        assert sketch.between(torch.tensor([column, 3, 7])).shape == (4, 3, 20)
        torch.testing.assert_close(
            sketch.between(torch.tensor([column]))[0, 0], example.exact[0, column], rtol=1e-9, atol=1e-12
        )


# In a table -----------------------------------------------------------------------------------------------

CASE = CASES["residual"]
GROUPS = CASE.plan(CASE.model()).groups


def _tables(n_samples: int, sensitive: Any, **options: Any) -> tuple[DamageTable, DamageTable]:
    model, (x, y) = CASE.model(), CASE.batch(n_samples)
    exact, sketched = (
        collect_damage(model, [(x, y, sensitive)], GROUPS, interactions=kind, progress=False, **options)
        for kind in ("exact", "sketched")
    )
    return exact, sketched


def _sets() -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(2)
    return [
        {g.name: torch.randperm(g.size, generator=generator)[: k % (g.size + 1)].tolist() for g in GROUPS}
        for k in range(1, 7)
    ]


@pytest.mark.parametrize("n_groups", [1, 3, 200])
def test_table_is_exact_while_rows_fit_in(n_groups: int) -> None:
    sensitive = torch.arange(220) % n_groups
    exact, sketched = _tables(220, sensitive)
    for table in ((exact, sketched), (exact.shrunk(5.0), sketched.shrunk(5.0))):
        for channels in _sets():
            torch.testing.assert_close(table[1].predict(channels), table[0].predict(channels), rtol=1e-9, atol=1e-12)
            assert not table[1].prediction_error(channels).any() and not table[0].prediction_error(channels).any()
        rows, columns = torch.tensor([0, 5]), torch.tensor([4, 0, 2])
        for chosen in (None, columns):
            between = [t.interactions_between(rows, chosen) for t in (table[1], table[0])]
            torch.testing.assert_close(*between, rtol=1e-9, atol=1e-12)
    names, groups = ["even", "odd"], [range(0, n_groups, 2), range(n_groups > 1, n_groups, 2)]
    pooled = [table.pooled(groups, names) for table in (exact, sketched)]
    torch.testing.assert_close(pooled[1].predict(_sets()[3]), pooled[0].predict(_sets()[3]), rtol=1e-9, atol=1e-12)
    for criterion in (MeanDamage(), WorstGroup()) if n_groups > 1 else (MeanDamage(),):
        orders = [joint_selection(table, criterion).order for table in (exact, sketched)]
        assert torch.equal(*orders)


def test_weight_columns(small: None) -> None:
    weights = torch.rand(30, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights[::3, 1] = 0
    exact, sketched = _tables(24, weights[:24], sensitive_weights=True)  # 24 samples, 3 classes: 48 rows
    for channels in _sets():
        torch.testing.assert_close(sketched.predict(channels), exact.predict(channels), rtol=1e-9, atol=1e-12)
    _, beyond = _tables(30, weights, sensitive_weights=True)
    errors = beyond.prediction_error(_sets()[2])
    assert errors.gt(0).tolist() == [True, False, True]  # 60 rows do not fit in, 40 do


def test_joint_selection_on_a_sketch(small: None) -> None:
    """Removed together: the set is as good as the exact one up to errors, and is not judged by what chose it."""
    generator = torch.Generator().manual_seed(0)
    sizes, n_columns = (150, 400, 260), 24
    rows = torch.randn(sum(sizes), n_columns, dtype=torch.float64, generator=generator)
    rows = rows @ torch.randn(n_columns, n_columns, dtype=torch.float64, generator=generator) / 5
    member = torch.arange(3).repeat_interleave(torch.tensor(sizes))
    slope = torch.rand(3, n_columns, dtype=torch.float64, generator=generator) * -0.1
    optimism, honest = [], []
    for draw in range(30):
        tables = {}
        for kind in ("exact", "sketched"):
            moments = Moments(n_columns, kind, rank=draw)  # type: ignore[arg-type]
            weights = nn.functional.one_hot(member, 3).double()
            moments.add(weights, torch.zeros(len(rows)), rows, rows.unsqueeze(1))
            fields = moments.means(_encoder())
            tables[kind] = DamageTable(sizes={"a": 14, "b": 10}, **{**fields, "slope": slope})
        for criterion in (MeanDamage(), WorstGroup()):
            chosen = {}
            for kind, table in tables.items():
                selection = joint_selection(table, criterion, pools=[Pool(("a", "b"), 12)])
                columns = selection.order[:12]
                chosen[kind] = {
                    "a": [c for c in columns.tolist() if c < 14],
                    "b": [c - 14 for c in columns.tolist() if c >= 14],
                }
                if kind == "sketched":
                    seen_by_selection = float(selection.change[columns].sum())
            values = {kind: _value(criterion, tables["exact"], channels) for kind, channels in chosen.items()}
            error = float(tables["sketched"].prediction_error(chosen["sketched"]).max())
            assert values["sketched"] - values["exact"] < 3 * error
            predicted = tables["sketched"].predict(chosen["sketched"]) - tables["exact"].predict(chosen["sketched"])
            honest.append(predicted / tables["sketched"].prediction_error(chosen["sketched"]))
            if isinstance(criterion, MeanDamage):
                optimism.append((seen_by_selection - values["sketched"]) / error)
    z = torch.stack(honest)
    assert float((z.abs() < 2).double().mean()) > 0.9 and abs(float(z.mean())) < 0.4
    assert 0.7 < float(z.square().mean().sqrt()) < 1.3
    assert sum(optimism) / len(optimism) < -0.2  # what the held-out rows are for


def _encoder() -> Any:
    from fairtrim.data.sensitive_groups import SensitiveEncoder

    encoder = SensitiveEncoder()
    encoder.encode(torch.arange(3), 3)
    return encoder


def _value(criterion: Criterion, table: DamageTable, channels: dict[str, list[int]]) -> float:
    return float(criterion.bind(table)(table.predict(channels).unsqueeze(1))[0])


def test_groups_that_appear_late_and_the_order_of_batches(small: None) -> None:
    """Every group's rows are sketched by themselves: what comes between doesn't matter, nor how it is cut."""
    model, (x, y) = CASE.model(), CASE.batch(90)
    a = torch.arange(90) // 60  # the second group appears in the last third
    b = torch.cat([torch.zeros(60, dtype=torch.int64), torch.ones(30, dtype=torch.int64)])
    assert torch.equal(a, b)
    tables = [
        collect_damage(
            model,
            [tuple(t[start : start + size] for t in (x, y, a)) for start in range(0, 90, size)],
            GROUPS,
            interactions="sketched",
            progress=False,
        )
        for size in (90, 17, 1)
    ]
    alone = collect_damage(model, [(x[:60], y[:60])], GROUPS, interactions="sketched", progress=False)
    for channels in _sets():
        for table in tables[1:]:
            torch.testing.assert_close(table.predict(channels), tables[0].predict(channels), rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(table.prediction_error(channels), tables[0].prediction_error(channels))
        torch.testing.assert_close(tables[0].predict(channels)[:1], alone.predict(channels), rtol=1e-9, atol=1e-12)


def test_which_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [resolved_interactions(True, n) for n in (4096, 4097)] == ["exact", "sketched"]
    assert [resolved_interactions(kind, 10) for kind in (False, "exact", "sketched")] == [None, "exact", "sketched"]
    for wrong in ("both", None, 1):
        if wrong != 1:
            with pytest.raises(InputError, match=r"interactions=.*expected False, True, 'exact' or 'sketched'"):
                resolved_interactions(wrong, 10)  # type: ignore[arg-type]
    monkeypatch.setattr(moments_module, "MAX_EXACT_CHANNELS", 10)
    batch = (*CASE.batch(5), [0, 1, 1, 0, 1])
    table = collect_damage(CASE.model(), [batch], GROUPS, interactions=True, progress=False)
    assert isinstance(table.interactions, SampleSketch)
    with pytest.raises(InputError, match="interactions='all'; expected one of 'auto', 'exact', 'sketched'"):
        WorstGroupImportance(interactions="all")  # type: ignore[arg-type]


def test_memory_is_refused_before_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments_module, "MAX_INTERACTION_BYTES", 40_000)
    model, (x, y) = CASE.model(), CASE.batch(120)
    n_columns = sum(group.size for group in GROUPS)
    fine = 40_000 // (8 * n_columns**2)
    for n_groups, interactions, message in (
        (fine + 1, "exact", r"Gram matrices.*use interactions='sketched'"),
        (120, "sketched", r"the sketches of \d+ sensitive groups over \d+ channels.*selection='single'"),
    ):
        batches = [(x[n : n + 1], y[n : n + 1], [n % n_groups]) for n in range(120)]
        with pytest.raises(InputError, match=message):
            collect_damage(model, batches, GROUPS, interactions=interactions, progress=False)
    collect_damage(model, [(x, y, torch.arange(120) % fine)], GROUPS, interactions="exact", progress=False)


def test_report_names_the_error_of_the_sketch(small: None) -> None:
    x, y = CASE.batch(80)
    a = torch.arange(80) % 2
    frames = {}
    for kind in ("exact", "sketched"):
        model = CASE.model()
        importance = MeanDamageImportance(interactions=kind, progress=False)  # type: ignore[arg-type]
        pruner = CASE.pruner(model, importance)
        importance.fit(pruner, [(x, y, a)])
        pruner.step()
        frames[kind] = importance.report().predicted
        removed = importance.report().layers["removed"].tolist()
        assert sum(removed) > 2
    assert "error of the sketch" not in frames["exact"].columns
    errors = frames["sketched"]["error of the sketch"]
    assert len(errors) == 2 and (errors > 0).all() and (errors < 1).all()
    assert "error of the sketch" in str(importance.report())


@pytest.mark.slow
def test_a_real_size() -> None:
    """9,000 channels: the default is a sketch, and its error is a few per cent of what it predicts."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 9000), nn.ReLU(), nn.Linear(9000, 2))
    groups = [ChannelGroup("0", 9000, (ChannelPlace("2", "input", range(9000), range(9000), -1),))]
    batch = (torch.randn(2200, 8), torch.randint(0, 2, (2200,)))
    table = collect_damage(model, [batch], groups, interactions=True, progress=False)
    assert isinstance(table.interactions, SampleSketch)
    chosen = {"0": range(0, 9000, 2)}
    hidden = model[1](model[0](batch[0]))[:, ::2] * (model[2].weight[0] - model[2].weight[1])[::2]
    p = model(batch[0]).softmax(1)[:, 0]
    truth = 0.5 * float((p * (1 - p) * hidden.sum(1).square()).mean().detach())
    curvature = float((table.predict(chosen) + table.slope[:, ::2].sum(1))[0])
    error = float(table.prediction_error(chosen)[0])
    assert abs(curvature - truth) < 3 * error
    assert 0.01 * truth < error < 0.1 * truth
