"""The console's server: Streamlit's application behind the guard. `cupola up` calls `streamlit run server.py`."""

from pathlib import Path

import streamlit as st
from starlette.middleware import Middleware

from cupola_platform.security.guard import Guard
from cupola_platform.settings import load_settings

app = st.App(
    Path(__file__).parent / "console.py",
    middleware=[Middleware(Guard, hosts=load_settings().allowed_hosts)],
)
