"""The local server: a warm model behind HTTP, for QuPath's menu and for scripts.

``serving`` starts it, ``app`` has the routes, ``guard`` decides who may call them.
"""
