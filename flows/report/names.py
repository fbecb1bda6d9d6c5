"""What a report's metrics are called and which unit they are written in.

Every name that a round may measure has a title here; one that hasn't is shown under its own name.
"""

from __future__ import annotations

METHODS = {
    "zero_shot": "Zero-shot",
    "few_shot": "Few-shot",
    "instruction": "Instruction only",
    "epsilon_0": "Student at ε = 0 (public only)",
    "student": "Taught student",
    "epsilon_inf": "Student at ε = ∞ (never released)",
    "originals": "Student on originals (upper line)",
    "tfidf": "TF-IDF on lessons",
}
BRACKETS = ("epsilon_0", "epsilon_inf")
"""Methods that only runs under a formal mechanism have."""
FAMILIES = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "exact_match": "Exact match",
    "rouge_l": "ROUGE-L",
    "chrf": "chrF",
    "fits": "Fits the structure",
}
# metric -> (title, unit); units are the keys of `figures._UNITS`
PRIVACY = {
    "canary.rank0_share": ("Canary secrets ranked first", "share"),
    "canary.rank1pct_share": ("Canary secrets in the top 1%", "share"),
    "canary.exposure_mean": ("Mean exposure, planted", "bits"),
    "canary.exposure_max": ("Highest exposure, planted", "bits"),
    "canary.exposure_out_mean": ("Mean exposure, not planted", "bits"),
    "canary.exposure_skew_normal_mean": ("Mean exposure, planted, by a fitted curve", "bits"),
    "canary.auc": ("AUC, planted against not planted", "score"),
    "canary.p_value": ("p-value of the planted secrets", "score"),
    "lessons.canary_verbatim": ("Canary secrets verbatim in the lessons", "number"),
    "lessons.canary_rank0_share": ("Secrets ranked first from the lessons", "share"),
}
INSTRUCTION = {
    "instruction.canary_verbatim": ("Canary secrets verbatim in the instruction", "number"),
    "instruction.canary_run_max": ("Longest run of a secret in the instruction", "words"),
    "instruction.canary_auc": ("AUC by the instruction, planted against not", "score"),
}
OVERLAP = {
    "overlap.longest_run_max": ("Longest run shared with a record", "words"),
    "overlap.ngram_share": ("Lessons sharing an n-gram", "share"),
    "overlap.near_duplicate_share": ("Lessons near-duplicate to a record", "share"),
    "overlap.cosine_max": ("Highest cosine to a record", "score"),
}
FORGETTING = {
    "forgetting.loss_before": ("Loss on neutral text, base model", "nats"),
    "forgetting.loss_after": ("Loss on neutral text, taught student", "nats"),
    "forgetting.increase": ("Increase in loss on neutral text", "nats"),
}
CONTAMINATION = {
    "contamination.lessons_share": ("Test texts seen in the lessons", "share"),
    "contamination.silos_share": ("Test texts seen in the silos' records", "share"),
}
AUDITED = {"lessons": "the lessons", "student": "the student"}
"""What the one-run audit looks at -> how it is called."""
EPSILON = {
    "epsilon.claimed": ("ε claimed, the worst silo", "epsilon"),
    **{
        f"audit.{key}.epsilon_low": (f"Lower bound of ε measured on {on}", "epsilon_low") for key, on in AUDITED.items()
    },
    **{
        f"audit.{key}.epsilon_ceiling": (f"Largest ε that could be measured on {on}", "epsilon_low")
        for key, on in AUDITED.items()
    },
}
MECHANISM = {"audit.mechanism.shift_ratio": ("Shift of the scores by one record, in parts of what may be", "number")}
CLEAN_CHANGED = "pii.clean_changed_share"
SCANNER = {CLEAN_CHANGED: ("Clean texts that the scanner changed", "share")}
TITLES = {**PRIVACY, **INSTRUCTION, **OVERLAP, **FORGETTING, **CONTAMINATION, **EPSILON, **MECHANISM, **SCANNER}

TARGETS = {"mia": "the student", "synthetic": "the lessons"}
"""First part of an attack's name -> what the attacker has."""
ATTACKS = {
    "mia.loss": "Loss",
    "mia.gain": "Gain over the base",
    "mia.zlib": "Loss per zipped byte",
    "mia.min_k": "Min-K%++",
    "mia.rmia": "RMIA",
    "synthetic.ngram": "Word pairs",
    "synthetic.neighbour": "Shared words",
    "synthetic.neighbour_meaning": "Shared meaning",
    "synthetic.neighbour_embedding": "Shared meaning, embedding",
    "synthetic.auxiliary": "Auxiliary model",
}
"""Attacks that tell members from non-members: name -> title."""
JUDGED = {
    "auc": "AUC",
    "tpr_at_1pct": "Members found at 1% false alarms",
    "tpr_at_01pct": "Members found at 0.1% false alarms",
}
"""What every such attack is judged by: last part of the metric's name -> title."""


def bracket_epsilon(method: str) -> float | None:
    """ε of a bracket's student (`epsilon_0`, `epsilon_2_5`, `epsilon_inf`); None for another method."""
    try:
        return float(method.removeprefix("epsilon_").replace("_", ".")) if method.startswith("epsilon_") else None
    except ValueError:
        return None


def method_title(method: str) -> str:
    """A method's title."""
    epsilon = bracket_epsilon(method)
    return METHODS[method] if method in METHODS or epsilon is None else f"Student at ε = {epsilon:g} (never released)"


def attack_title(attack: str) -> str:
    """Such an attack's title with what it is on, e.g. `RMIA on the student`."""
    target = TARGETS.get(attack.partition(".")[0])
    return ATTACKS.get(attack, attack) + (f" on {target}" if target else "")


def unit_of(name: str) -> str:
    """The unit a metric is shown in."""
    family, _, measure = name.partition(".")[0], *name.rpartition(".")[1:]
    if name in TITLES:
        return TITLES[name][1]
    if measure == "auc":
        return "score"
    return "share" if family in (*FAMILIES, "recall", "pii", "extraction") or measure in JUDGED else "number"


def title_of(name: str) -> str:
    """A metric's name in words."""
    if name in TITLES:
        return TITLES[name][0]
    family, _, rest = name.partition(".")
    key, _, label = rest.partition(".")
    if (key in METHODS or bracket_epsilon(key) is not None) and family in (*FAMILIES, "recall"):
        method = METHODS[key] if key == "tfidf" else lower(method_title(key))
        score = FAMILIES.get(family, "Recall") + (f" on class “{label}”" if label else "")
        return f"{score} of {'the ' if 'student' in method else ''}{method}"
    attack, _, measure = name.rpartition(".")
    if measure in JUDGED and (attack in ATTACKS or family in TARGETS):
        return f"{JUDGED[measure]} {'of' if measure == 'auc' else 'by'} {attack_title(attack)}"
    if family == "pii" and key in ("recall", "precision") and label:
        return f"{key.capitalize()} of the scanner on {entity_title(label)}"
    if family == "extraction" and key.startswith("prefix_"):
        tokens, _, side = key.removeprefix("prefix_").partition("_")
        return f"{'Non-members' if side == 'out' else 'Members'} continued word for word from {tokens} tokens"
    return name[:1].upper() + name[1:]


def entity_title(entity: str) -> str:
    """A PII entity, and the special forms of one, e.g. `EMAIL ADDRESS, obfuscated`."""
    return entity.replace(".", ", ").replace("_", " ")


def lower(title: str) -> str:
    """A title inside a sentence."""
    return title[:1].lower() + title[1:]
