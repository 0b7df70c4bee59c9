"""The console: navigation and sign-in. `server.py` serves it."""

from pathlib import Path

import streamlit as st

from cupola_dashboards.sign_in import sign_in
from cupola_dashboards.text import guarded
from cupola_dashboards.views import annotate, checkpoints, corpus, launch, lineage, runs
from cupola_platform.settings import load_settings

HERE = Path(__file__).parent


@guarded
def main() -> None:
    """Draw the page at the current address, after the sign-in if a password is set."""
    st.set_page_config(page_title="Cupola", page_icon=str(HERE / "icon.svg"), layout="wide")
    st.logo(str(HERE / "logo.svg"), size="large")
    pages = [
        st.Page(runs.page, title="Runs", default=True),
        st.Page(checkpoints.page, title="Checkpoints", url_path="checkpoints"),
        st.Page(lineage.page, title="Lineage", url_path="lineage"),
        st.Page(corpus.page, title="Corpus", url_path="corpus"),
        st.Page(annotate.page, title="Annotate", url_path="annotate"),
        st.Page(launch.page, title="Launch", url_path="launch"),
    ]
    password = load_settings().console_password
    if password is None or st.session_state.get("signed_in"):
        st.navigation(pages, position="top").run()
        return
    st.navigation(pages, position="hidden")  # so that the requested address is known and kept
    sign_in(password.get_secret_value())


main()
