"""`meshmint agent`: gets certificates, renews them, and hands them to programs.

It needs the extra `meshmint[agent]`, and never any code of the server.
"""
