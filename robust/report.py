"""The results of robust/attack.py: tables, figures and a page."""

from pathlib import Path

import numpy as np

from medood.attacks.measuring import CLEAN, GREEDY, Condition
from medood.attacks.together import WORST
from medood.data.files import write_json
from medood.data.patients import patients_of
from medood.data.workspace import data_name
from medood.evaluation import figures
from medood.evaluation.objects import by_size, wide_bins
from medood.evaluation.page import Part, Picture, Table, Text, as_markdown, write_page
from medood.evaluation.scores import RegionCounts, weighted
from medood.evaluation.statistics import Difference, bootstrap, paired_differences, pool
from medood.evaluation.tables import interval_over, spread
from medood.pixels import ratio
from robust.attacked import ATTACKS, CORRUPTIONS, TENTH, Attacked, Found, attacks_of, label
from robust.by_corruption import ABOUT as OF_CORRUPTIONS
from robust.by_corruption import corruption_differences, corruption_scores, corruption_table
from robust.settings import AttackConfig

SHOWN_SCORES = ("miou", "dsc", "fg_to_bg", "bg_to_fg", "fooled")
COMPARED = ("miou", "fg_to_bg", "bg_to_fg")
MAGNIFIED = 20  # times, a change in the pictures
ROUGHLY = 0.01  # of Dice: less is chance
FRAGILE = 0.1  # of the clean Dice: what noise may cost
CONTROLS = ("noise", TENTH, "square")  # attacks that would show masked gradients

ABOUT = (
    "Scores when each pixel may change by at most eps / 255 and the attacker knows the weights. The"
    " worst case is, image by image, the attack with the lowest Dice; that of all images combines"
    " the attacks to the lowest miou of all images (greedily). An image is fooled if its Dice falls"
    " below half of the mean on clean images."
)
OF_SIZES = (
    "Share of true objects that are found, percent: at least half of the pixels are predicted as"
    " their class. Four bins of as many objects each as possible; objects at the border of a patch"
    " are excluded. They are nuclei if the labels have instances, else connected components."
)


def pairs_of(found: Found) -> list[Condition]:
    """Return the pairs of eps and attack, in their order: the same for all folds and networks."""
    return next(iter(next(iter(found.values())).values())).pairs


def scores_by_attack(found: Found) -> dict:
    """Return the content of scores.json: by fold, network, eps in 255ths and attack."""
    scores, bins = {}, bins_of(found)
    for fold, networks in found.items():
        for network, attacked in networks.items():
            of_network = scores.setdefault(fold, {}).setdefault(network, {})
            # half of the score of the network on clean images, for all attacks
            threshold = attacked.dice[0].mean() / 2
            for place, (eps, attack) in enumerate(attacked.pairs):
                of_network.setdefault(f"{eps:g}", {})[attack] = {
                    **attacked.tally(place).scores(),
                    "fooled": (attacked.dice[place] < threshold).float().mean().item(),
                    "largest_change": attacked.change[place].max().item(),
                    **by_size(attacked.objects[place].sum(0).numpy(), bins),
                }
    return scores


def differences(cfg: AttackConfig, found: Found, one_training: bool) -> dict:
    """Return each network's scores in the worst case less those of the first.

    one_training: a network was trained once, however many folds it is attacked on.
    """
    first, *others = next(iter(found.values()))
    gains: dict[str, dict[str, dict[str, Difference]]] = {}
    for place, (eps, attack) in enumerate(pairs_of(found)):
        if attack not in (CLEAN[1], WORST):
            continue
        counts = {
            network: [_by_patient(cfg, of_fold[network], place) for of_fold in found.values()]
            for network in (first, *others)
        }
        if one_training:
            counts = {network: [pool(of_folds)] for network, of_folds in counts.items()}
        for network in others:
            gain = paired_differences(counts[network], counts[first], cfg.class_names)
            gains.setdefault(network, {})[f"{eps:g}"] = gain
    return gains


def _by_patient(cfg: AttackConfig, attacked: Attacked, place: int) -> RegionCounts:
    return attacked.tally(place).by_region(patients_of(cfg, attacked.names))


def signs(cfg: AttackConfig, found: Found, network: str) -> list[Text]:
    """Return the evidence against the attacks on a network: masked gradients, or visible noise.

    A gradient-based attack must do more than one without, and more steps more than few (Carlini et
    al., "On evaluating adversarial robustness", 2019).
    """
    dice = {
        pair: np.mean([of_fold[network].dice[place].mean() for of_fold in found.values()])
        for place, pair in enumerate(pairs_of(found))
    }
    against = []
    for eps in sorted(cfg.eps):
        of_eps = {attack: value for (bound, attack), value in dice.items() if bound == eps}
        noise, tenth, square, apgd = (of_eps.get(name, np.nan) for name in (*CONTROLS, "apgd_ce"))
        best = min((v for name, v in of_eps.items() if name.startswith("apgd")), default=np.nan)
        reasons = {
            f"Square, which uses no gradient, leaves a Dice of {square:.3f}, APGD {best:.3f}:"
            " gradients are masked": square < best - ROUGHLY,
            f"a tenth of the steps leaves a Dice of {tenth:.3f}, all of them {apgd:.3f}:"
            " gradients are masked": apgd > tenth + ROUGHLY,
            f"random noise alone lowers Dice from {dice[CLEAN]:.3f} to {noise:.3f}: the change is"
            " large, not adversarial": noise < (1 - FRAGILE) * dice[CLEAN],
        }
        said = [reason for reason, holds in reasons.items() if holds]
        against += [Text(f"{label(network)}, eps {eps:g}: {reason}.", "verdict") for reason in said]
    tried = [label(name) for name in CONTROLS if name in attacks_of(cfg)]
    controls = ", ".join(tried) or "no attack was tried that could show it"
    none = Text(f"{label(network)}: no sign of masked gradients ({controls}).", "note")
    return against or [none]


def attack_table(scores: dict) -> tuple[list[str], list[list[str]]]:
    """Return `miou` of every network and attack, in percent, with a column for each eps."""
    networks = next(iter(scores.values()))
    columns = list(next(iter(networks.values())))
    rows = []
    for network, of_network in networks.items():
        for attack in dict.fromkeys(name for of_eps in of_network.values() for name in of_eps):
            cells = [_cell(scores, network, eps, attack, "miou") for eps in columns]
            rows.append([label(network), label(attack), *cells])
    return ["network", "attack", *(f"eps {eps}" for eps in columns)], rows


def worst_table(scores: dict) -> tuple[list[str], list[list[str]]]:
    """Return the scores of every network in the worst case of all attacks, in percent.

    The last column is `miou` in that of all images.
    """
    rows = []
    for network, of_network in next(iter(scores.values())).items():
        for eps, of_eps in of_network.items():
            attack = WORST if WORST in of_eps else CLEAN[1]
            cells = [_cell(scores, network, eps, attack, name) for name in SHOWN_SCORES]
            cells.append(_cell(scores, network, eps, GREEDY, "miou"))
            rows.append([label(network), eps, *cells])
    return ["network", "eps", *SHOWN_SCORES, "miou, of all images"], rows


def difference_table(gains: dict) -> tuple[list[str], list[list[str]]]:
    """Return the differences with their intervals, in points."""
    rows = [
        [label(network), eps, *(gain[name].text() for name in COMPARED)]
        for network, by_eps in gains.items()
        for eps, gain in by_eps.items()
    ]
    return ["network", "eps", *COMPARED], rows


def _cell(scores: dict, network: str, eps: str, attack: str, name: str) -> str:
    """Return a score over folds, "" for an attack that is not tried at this eps."""
    found = [of_fold[network][eps].get(attack, {}) for of_fold in scores.values()]
    return spread([of_attack[name] for of_attack in found]) if all(found) else ""


def draw_examples(cfg: AttackConfig, found: Found, out: Path) -> list[Picture]:
    """Draw patches of the first fold: image, change, ground truth, prediction before and after.

    Return a picture of each network.
    """
    pictures = []
    fold, networks = next(iter(found.items()))
    for network, attacked in networks.items():
        path = out / f"examples_{network}.png"
        clean, worst = attacked.images.permute(0, 1, 3, 4, 2)
        change = (0.5 + MAGNIFIED * (worst - clean)).clip(0, 1)  # grey: no change
        masks = dict(zip(("ground truth", "before", "after"), attacked.called, strict=True))
        columns = {"image": clean, f"change x {MAGNIFIED}": change} | masks
        title = f"fold {fold}, eps {max(cfg.eps):g}: {label(network)}"
        title = f"{data_name(cfg.workspace)}, {title}"
        figures.draw_rows(path, title, attacked.names[: len(clean)], columns, cfg.classes)
        caption = "image, change, ground truth, prediction before and after"
        pictures.append(Picture(path, f"{label(network)}: {caption}."))
    return pictures


def bins_of(found: Found) -> dict[str, slice]:
    """Return bins of the sizes of all true objects, the same for all folds and networks."""
    first = [next(iter(networks.values())) for networks in found.values()]
    return wide_bins(sum(attacked.objects[0, :, :, 0].sum(0).numpy() for attacked in first))


def shares_by_size(cfg: AttackConfig, found: Found) -> dict[tuple, dict[str, Difference]]:
    """Return the share of objects found in each bin, with its interval: by network, eps, attack.

    Of every attack at the largest eps, of the clean images, and of the worst case at each eps.
    """
    bins, shares = bins_of(found), {}
    for network in next(iter(found.values())):
        tests = [of_fold[network] for of_fold in found.values()]
        for place, (eps, attack) in enumerate(tests[0].pairs):
            if eps not in (0, max(cfg.eps)) and attack != WORST:
                continue

            def of_test(test: int, weight: np.ndarray) -> dict[str, np.ndarray]:
                counts = weighted(weight, tests[test].objects[place].numpy())  # noqa: B023
                sums = {size: counts[:, of_bin].sum(1).T for size, of_bin in bins.items()}
                return {size: ratio(hit, every) for size, (every, hit) in sums.items()}

            regions = [patients_of(cfg, one.names) for one in tests]
            shares[network, eps, attack] = bootstrap(regions, of_test)
    return shares


def size_table(scores: dict, shares: dict) -> tuple[list[str], list[list[str]]]:
    """Return the share found in each bin of sizes as header and rows."""
    rows = [
        [label(network), f"{eps:g}", label(attack), *(share.points() for share in of.values())]
        for (network, eps, attack), of in shares.items()
    ]
    clean = [next(iter(of_fold.values()))["0"][CLEAN[1]] for of_fold in scores.values()]
    objects = [of_fold["objects_by_size"] for of_fold in clean]
    header = [f"{size} ({sum(of_fold[size] for of_fold in objects)})" for size in objects[0]]
    return ["network", "eps", "attack", *header], rows


def draw_sizes(path: Path, shares: dict) -> Picture:
    """Draw the shares found by size: clean, and in the worst case, dashed and paler by eps."""
    with figures.canvas(path, "") as figure:
        ax, networks = figure.subplots(), list(dict.fromkeys(network for network, *_ in shares))
        for (network, eps, attack), of_sizes in shares.items():
            if attack in (CLEAN[1], WORST):
                mean, low, high = 100 * np.array(list(of_sizes.values())).T
                colour = figures.COLOURS[networks.index(network) % len(figures.COLOURS)]
                name = f"{label(network)}, {label(attack)}" + f" {eps:g}" * (eps > 0)
                style = {"fmt": "o--" if eps else "o-", "capsize": 3, "alpha": 1 / (1 + eps / 8)}
                bars = np.stack([mean - low, high - mean]).clip(0)
                ax.errorbar(list(of_sizes), mean, bars, c=colour, ms=4, label=name, **style)
        ax.set(xlabel="size of the object", ylabel="found, percent", ylim=(0, 100))
        figure.legend(ncols=3, loc="outside lower center")
    return Picture(path, "Objects found, by their size: clean, and in the worst case.")


def draw_scores(path: Path, scores: dict) -> Picture:
    """Draw `miou` against eps: a line for the worst case of each network, dotted under noise."""
    with figures.canvas(path, "") as figure:
        ax = figure.subplots()
        for colour, network in zip(figures.COLOURS, next(iter(scores.values())), strict=False):
            for attack, style in ((WORST, "o-"), ("noise", ":")):
                line = {}
                for eps, of_eps in next(iter(scores.values()))[network].items():
                    one = attack if attack in of_eps else CLEAN[1]
                    if one in of_eps:
                        line[float(eps)] = [of[network][eps][one]["miou"] for of in scores.values()]
                if len(line) > 1:
                    means = 100 * np.array(list(line.values()), float).mean(1)
                    name = f"{label(network)}, {label(attack)}"
                    ax.plot(list(line), means, style, c=colour, ms=4, label=name)
        ax.set(xlabel="eps, in 255ths", ylabel="miou, percent", ylim=(0, None))
        figure.legend(ncols=3, loc="outside lower center")
    return Picture(path, "Mean IoU against eps: the worst case of all attacks, and random noise.")


def write_report(
    cfg: AttackConfig, trials: dict[str, Found], out: Path, one_training: bool
) -> None:
    """Print the tables; write them, the scores, the figures and the page.

    trials: see trials_of. one_training: see differences.
    """
    found = trials[ATTACKS]
    scores, gains = scores_by_attack(found), differences(cfg, found, one_training)
    networks, by_sizes = list(next(iter(found.values()))), shares_by_size(cfg, found)
    compared: list[Part] = []
    if gains:
        names = [name for of_fold in found.values() for name in of_fold[networks[0]].names]
        interval = interval_over(len(set(patients_of(cfg, names))), cfg.unit)
        words = f"In the worst case, each network less {label(networks[0])}, in points, {interval}."
        table = Table("differences under attack", *difference_table(gains))
        compared = [Text(words, "note"), table]
    sizes = {fold: len(next(iter(tried.values())).names) for fold, tried in found.items()}
    folds = ", ".join(f"fold {fold} ({size} patches)" for fold, size in sizes.items())
    about = f"Percent, {folds}; {cfg.steps} steps, {cfg.queries} queries; eps in 255ths"
    parts = [
        *(Text(ABOUT), Text(f"{data_name(cfg.workspace)}. {about}", "note")),
        *(Table("worst case", *worst_table(scores)), *compared),
        draw_scores(out / "scores.svg", scores),
        *of_corruptions(cfg, trials.get(CORRUPTIONS), scores, out),
        Text("Attack by attack: miou, percent.", "note"),
        Table("attacks", *attack_table(scores)),
        *(Text(OF_SIZES, "note"), Table("found, by size", *size_table(scores, by_sizes))),
        draw_sizes(out / "sizes.svg", by_sizes),
        *(text for network in networks for text in signs(cfg, found, network)),
        *draw_examples(cfg, found, out),
    ]
    write_json(out / "scores.json", scores)
    plain = {
        network: {eps: {k: gain.plain() for k, gain in of.items()} for eps, of in by_eps.items()}
        for network, by_eps in gains.items()
    }
    write_json(out / "differences.json", plain)
    names = " and ".join(map(label, networks))
    write_page(cfg.workspace, out, f"{names} under attack", {"": parts}, as_markdown(parts))


def of_corruptions(cfg: AttackConfig, found: Found | None, attacked: dict, out: Path) -> list[Part]:
    """Write the results of corruptions, if they were tried; return their part of the page."""
    if not found:
        return []
    scores = corruption_scores(found)
    write_json(out / "corruptions.json", scores)
    parts = [Text(OF_CORRUPTIONS, "note")]
    parts.append(Table("corruptions", *corruption_table(scores, attacked)))
    header, rows = corruption_differences(cfg, found)
    return [*parts, Table("differences under corruptions", header, rows)] if rows else parts
