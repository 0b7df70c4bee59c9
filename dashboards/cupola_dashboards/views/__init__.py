"""One module per page, each with a function `page` that draws it.

It is not called `pages`, because Streamlit serves a folder of that name beside its script without the sign-in.
"""
