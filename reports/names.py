"""The names of strategies as papers write them."""

PAPER_NAMES = {
    "agem": "A-GEM",
    "aper": "APER",
    "bic": "BiC",
    "coda-prompt": "CODA-Prompt",
    "cumulative": "cumulative",
    "der": "DER",
    "derpp": "DER++",
    "dgr": "DGR",
    "dualprompt": "DualPrompt",
    "ease": "EASE",
    "er": "ER",
    "er-ace": "ER-ACE",
    "er-aml": "ER-AML",
    "ewc": "EWC",
    "feature-extraction": "feature extraction",
    "fecam": "FeCAM",
    "fetril": "FeTrIL",
    "frozen-ncm": "frozen NCM",
    "gdumb": "GDumb",
    "gem": "GEM",
    "gsa": "GSA",
    "hat": "HAT",
    "icarl": "iCaRL",
    "il2m": "IL2M",
    "inflora": "InfLoRA",
    "independent": "independent",
    "joint": "joint",
    "cbp": "CBP",
    "shrink-perturb": "S&P",
    "l2": "L2",
    "l2-init": "L2 Init",
    "l2p": "L2P",
    "lucir": "LUCIR",
    "lwf": "LwF",
    "lwf-mc": "LwF.MC",
    "mas": "MAS",
    "mir": "MIR",
    "mos": "MOS",
    "naive": "naive",
    "packnet": "PackNet",
    "pnn": "PNN",
    "podnet": "PODNet",
    "randumb": "RanDumb",
    "ranpac": "RanPAC",
    "rwalk": "RWalk",
    "scr": "SCR",
    "si": "SI",
    "simplecil": "SimpleCIL",
    "slca": "SLCA",
    "slda": "SLDA",
    "wa": "WA",
    "xdg": "XdG",
}


def paper_name(strategy: str, label: str) -> tuple[str, str]:
    """Return the name of a strategy in papers, and what its label says beside it: `er[share=0.2]` is ER, [share=0.2].

    A label that the user chose, and a strategy that is not of clbench, keep their text.
    """
    beside = label.removeprefix(strategy)
    if strategy not in PAPER_NAMES or not label.startswith(strategy) or beside[:1] not in ("", "[", " "):
        return label, ""
    return PAPER_NAMES[strategy], beside
