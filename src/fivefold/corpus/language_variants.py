"""Wikitext's language variants, `-{zh-hans:...; zh-hant:...}-`: the simplified one is kept."""

import re

# What Mainland China reads, then what comes nearest to it.
PREFERRED = ("zh-cn", "zh-hans", "zh-sg", "zh-my", "zh", "zh-hant", "zh-tw", "zh-hk", "zh-mo")
# H adds a rule of conversion in silence, T a title, N names a variant, - takes a rule back.
SILENT_FLAGS = {"h", "t", "n", "-"}
FLAGS = re.compile(r"\s*(?:[a-z-]+\s*(?:;\s*[a-z-]+\s*)*|[+-]?)\s*", re.IGNORECASE)
VARIANT = r"[a-z]{2,3}(?:-[a-z]+)*"
# A semicolon ends a variant only where another one follows, so that those of entities such as &nbsp; stay.
RULE_BORDER = re.compile(rf";\s*(?=(?:[^;:]*=>\s*)?{VARIANT}\s*:|$)", re.IGNORECASE)
RULE = re.compile(rf"\s*(?:.*?=>\s*)?({VARIANT})\s*:(.*)", re.IGNORECASE | re.DOTALL)


def chosen_variant(content: str) -> str:
    """What a reader of simplified Chinese sees of the markup between `-{` and `}-`.

    Source: MediaWiki's documentation of LanguageConverter, "Syntax".
    Differs: rules count where they stand; MediaWiki applies those of A and H to the whole page.

    Args:
        content: flags and a bar, if any, then text or variants, already freed of markup inside.
    """
    flags, bar, body = content.partition("|")
    if not bar or not FLAGS.fullmatch(flags):
        flags, body = "", content
    named = {flag.strip().lower() for flag in flags.split(";")} - {""}
    if named & SILENT_FLAGS:
        return ""
    if "r" in named:
        return body.strip()
    if named and all("zh" in flag for flag in named):  # text for readers of these variants only
        return body.strip() if named & {"zh", "zh-cn", "zh-hans"} else ""
    matches = [RULE.fullmatch(rule) for rule in RULE_BORDER.split(body) if rule.strip()]
    if not matches or None in matches:
        return body.strip()
    variants = {match[1].lower(): match[2].strip() for match in reversed(matches) if match}
    best = next((name for name in PREFERRED if name in variants), None)
    return variants[best] if best else next(reversed(variants.values()))
