"""The routes: each checks its request, calls one function, and says what it gave."""
