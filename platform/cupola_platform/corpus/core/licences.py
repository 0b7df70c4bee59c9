"""The licence of a source file, from its own header or the nearest licence file above it."""

import re
from functools import cache
from pathlib import Path

UNKNOWN = "unknown"

PERMISSIVE = ("MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Unlicense", "CC0-1.0", "PSF-2.0", "Zlib")

_SPDX = re.compile(r"SPDX-License-Identifier:\s*\(?([\w.+-]+(?: (?:OR|AND|WITH) [\w.+-]+)*)")
_FILES = re.compile(r"(?i)^(?:licen[cs]e|copying|unlicense)(?:[-.].*)?$")
_PHRASES = (
    ("Apache-2.0", r"Apache License,?\s+Version 2\.0"),
    ("AGPL-3.0", r"GNU AFFERO GENERAL PUBLIC LICENSE"),
    ("LGPL", r"GNU LESSER GENERAL PUBLIC LICENSE"),
    ("GPL", r"GNU GENERAL PUBLIC LICENSE"),
    ("MPL-2.0", r"Mozilla Public License,?\s+(?:Version|v\.) 2\.0"),
    ("PSF-2.0", r"PYTHON SOFTWARE FOUNDATION LICENSE"),
    ("BSD-3-Clause", r"Redistribution and use in source and binary forms[\s\S]*Neither the name"),
    ("BSD-2-Clause", r"Redistribution and use in source and binary forms"),
    ("ISC", r"Permission to use, copy, modify,? and/or distribute this software for any\s+purpose with or without fee"),
    ("MIT", r"Permission is hereby granted, free of charge, to any person obtaining a\s+copy"),
    ("CC0-1.0", r"CC0 1\.0 Universal"),
    ("Unlicense", r"This is free and unencumbered software released into the public domain"),
    ("Zlib", r"This software is provided ['\u2018]as-is['\u2019], without any express or implied\s+warranty"),
)

HEADER_CHARACTERS = 4_000


def licence_of(text: str, path: Path, root: Path) -> str:
    """An SPDX identifier, a family (`GPL`, `LGPL`), or `unknown`."""
    header = text[:HEADER_CHARACTERS]
    if declared := _SPDX.search(header):
        return declared[1]
    return _recognise(header) or _above(path.parent, root)


@cache
def _above(folder: Path, root: Path) -> str:
    """The licence in a folder's licence file or the nearest one above it, up to `root`."""
    for path in sorted(folder.iterdir()):
        if _FILES.match(path.name) and path.is_file() and not path.is_symlink():
            named = _recognise(path.read_text(encoding="utf-8", errors="replace"))
            if named:
                return named
    return UNKNOWN if folder == root or root not in folder.parents else _above(folder.parent, root)


def _recognise(text: str) -> str:
    return next((name for name, phrase in _PHRASES if re.search(phrase, text)), "")
