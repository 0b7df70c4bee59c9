"""The console's sign-in: one shared password, and a wait that grows with wrong ones."""

import hmac
import math
import threading
from time import monotonic

import streamlit as st

FREE_TRIES = 5
"""Wrong passwords before one has to wait."""
FIRST_WAIT, LONGEST_WAIT = 5.0, 60.0
"""Seconds of the first wait, doubled by each wrong password that follows, and where that ends."""


class Tries:
    """Wrong passwords at this console, whoever typed them and in whichever session: a new page starts no new count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.forget()

    def forget(self) -> None:
        self._wrong = 0
        self._not_before = 0.0

    def wait(self) -> float:
        """Seconds until the next password is looked at. By the time since boot, which no clock step shortens."""
        return max(0.0, self._not_before - monotonic())

    def admits(self, typed: str, password: str) -> bool:
        """Whether it is the password, compared in constant time. While one has to wait, no password is."""
        with self._lock:
            if self.wait() > 0:
                return False
            if hmac.compare_digest(typed.encode(), password.encode()):
                self.forget()
                return True
            self._wrong += 1
            if self._wrong >= FREE_TRIES:
                doublings = min(self._wrong - FREE_TRIES, 10)
                self._not_before = monotonic() + min(FIRST_WAIT * 2**doublings, LONGEST_WAIT)
            return False


TRIES = Tries()
"""In a module, not in Streamlit's cache: anyone at a page can clear that."""


def sign_in(password: str) -> None:
    """Ask for the shared password."""
    with st.columns([1, 1, 1])[1], st.form("sign-in"):
        st.subheader("Sign in")
        typed = st.text_input("Password", type="password", autocomplete="current-password")
        if st.form_submit_button("Sign in", type="primary"):
            waited_already = TRIES.wait() > 0
            if TRIES.admits(typed, password):
                st.session_state["signed_in"] = True
                st.rerun()
            if not waited_already:
                st.error(
                    "That is not the password. `cupola up --show-credential` prints it; elsewhere it is the "
                    "CUPOLA_CONSOLE_PASSWORD of whoever runs this console."
                )
            if TRIES.wait() > 0:
                st.warning(f"Too many wrong passwords. The next one is looked at in {math.ceil(TRIES.wait())} s.")
