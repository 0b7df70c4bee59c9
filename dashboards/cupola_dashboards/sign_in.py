"""The console's sign-in: one shared password, and a growing wait after wrong attempts."""

import hmac
import math
import threading
from time import monotonic

import streamlit as st

FREE_TRIES = 5
"""Wrong passwords before the first wait."""
FIRST_WAIT, LONGEST_WAIT = 5.0, 60.0
"""Seconds of the first wait, which doubles with each further wrong password, and of the longest."""


class Tries:
    """Counts wrong passwords over all users and sessions, so that reloading the page does not reset the count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.forget()

    def forget(self) -> None:
        self._wrong = 0
        self._not_before = 0.0

    def wait(self) -> float:
        """Seconds until the next password is checked, by the time since boot, which setting the clock does not
        change."""
        return max(0.0, self._not_before - monotonic())

    def admits(self, typed: str, password: str) -> bool:
        """Whether the password is right, compared in constant time. Always false during a wait."""
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
"""Kept in a module, because anyone can clear Streamlit's cache from a page."""


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
                    "Wrong password. `cupola up --show-credential` prints it, or ask the operator for "
                    "CUPOLA_CONSOLE_PASSWORD."
                )
            if TRIES.wait() > 0:
                st.warning(f"Too many wrong passwords. Try again in {math.ceil(TRIES.wait())} s.")
