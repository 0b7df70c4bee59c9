"""One module a page, each with a function `page` that draws it.

Not called `pages`: Streamlit takes a folder of that name beside its script for pages of its own,
and passes the sign-in by.
"""
