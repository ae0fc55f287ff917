"""Provenance: whether a product of a workspace is current with its sources and settings.

`require` walks the table of medood/runs/products.py, from what a step reads down to the user's
data, and stops the step at the first product that is missing or out of date. User-supplied products
are used as they are, and so are those whose sources are gone: see medood/data/records.py.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from config import Data, UserError
from medood.data import records
from medood.data.files import timed
from medood.data.records import CHANGED, CURRENT, YOURS, BadFiles, Record, record_of
from medood.processes import on_main
from medood.runs.locks import locked
from medood.runs.products import PRODUCTS, Product, with_all_behind


@on_main
def require(cfg: Data, *products: Product, images: bool = False) -> None:
    """Raise UserError unless products, and all behind them, exist and are current for each fold.

    Bad files that were skipped before are refused too, unless they are to be skipped. images: open
    them too; they are left to the step that reads them, as a training must not open those of its
    test side.
    """
    bad: BadFiles = {}
    seen: set[Path] = set()
    for fold in cfg.folds:
        found = {each: record_of(each.path(cfg, fold)) for each in with_all_behind(products)}
        for product in _to_check(products, found):
            record = found[product]
            if record.product in seen:
                continue
            seen.add(record.product)
            made_from, again = (partial(of, cfg, fold) for of in (product.made_from, product.cure))
            if not record.is_there and not any(cfg.workspace.glob("[!.]*")):
                raise UserError(
                    f"{record.product} is missing ({cfg.workspace} is empty, or its name is"
                    f" misspelled): run `{again()}` first"
                )
            records.refuse_unusable(record, made_from, again, images)
            bad |= record.bad_files
    records.refuse_bad(bad, cfg.skip_bad_files)


def _to_check(products: Iterable[Product], found: dict[Product, Record]) -> Iterator[Product]:
    """Yield some products, each after the existing ones that it is made from.

    What is behind a user-supplied product does not matter. found: the record of each product.
    """
    for product in products:
        if found[product].content is not None:
            behind = [source for source in product.behind if found[source].is_there]
            yield from _to_check(behind, found)
        yield product


def survey(cfg: Data) -> dict[str, tuple[int, str]]:
    """Return the state of each existing product, by its path, and what the steps would do with it.

    Of a changed one, the error that they would raise.
    """
    found: dict[str, tuple[int, str]] = {}
    for fold in cfg.folds:
        stays: set[Product] = set()
        for product in PRODUCTS:
            record = record_of(product.path(cfg, fold))
            try:
                now = product.made_from(cfg, fold)
            except UserError:
                now = {"inputs": "cannot be read"}
            state, why = record.state(lambda now=now: now)
            new = [source.name for source in product.behind if source not in stays]
            said = f"regenerated: {why}"
            if state in (YOURS, CHANGED):
                said = why or "user-supplied: used as it is"
                stays.add(product)
            elif new:
                said = said if why else f"may be regenerated after {' and '.join(new)}"
            elif state == CURRENT or None in now.values():  # no step can regenerate it
                said = "kept"
                stays.add(product)
            if record.is_there:
                found.setdefault(str(record.product.relative_to(cfg.workspace)), (state, said))
    return found


def product_is_kept(cfg: Data, product: Product, fold: int = 0) -> bool:
    """Say, also to the user, whether a product stays: because it is current, or user-supplied."""
    return records.is_kept(product.path(cfg, fold), product.made_from(cfg, fold))


@contextmanager
def making(
    cfg: Data, *products: Product, fold: int | None = None, bad: BadFiles | None = None
) -> Iterator[list[Path]]:
    """Give a folder to fill for each of some products, or none if all of them are kept.

    A complete folder takes the product's name, with its record. No other run writes them meanwhile.
    fold: of the products, if each fold has its own. bad: the input files that are skipped; may be
    filled meanwhile. After an error or a kill, the products are what they were before.
    """
    made = {each.path(cfg, fold or 0): each.made_from(cfg, fold or 0) for each in products}
    # all are checked: a changed one is not overwritten because another one is missing
    if all([records.is_kept(path, made_from) for path, made_from in made.items()]):
        yield []
        return
    with ExitStack() as stack:
        stack.enter_context(locked(cfg.workspace, [path.name for path in made]))
        of_fold = "" if fold is None else f" {next(iter(made)).name}"
        stack.enter_context(timed(cfg.workspace, f"{products[0].name}{of_fold}"))
        folders = (records.fresh_folder(path, made[path], bad) for path in made)
        yield [stack.enter_context(folder) for folder in folders]


def write_product(cfg: Data, product: Product, fold: int, text: str) -> None:
    """Write a product that is a table, with its record."""
    records.write_recorded(product.path(cfg, fold), text, product.made_from(cfg, fold))
