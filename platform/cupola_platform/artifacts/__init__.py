"""What passes between stages: an immutable folder, named by its content, with `manifest.json` written last."""

from cupola_platform.artifacts.digests import canonical_json, code_version, digest_file, fingerprint
from cupola_platform.artifacts.manifest import MANIFEST, Artifact, FileEntry, Manifest
from cupola_platform.artifacts.sealing import read, seal, verify

FINGERPRINTED = False  # seals and verifies artifacts

__all__ = [
    "MANIFEST",
    "Artifact",
    "FileEntry",
    "Manifest",
    "canonical_json",
    "code_version",
    "digest_file",
    "fingerprint",
    "read",
    "seal",
    "verify",
]
