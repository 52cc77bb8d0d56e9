"""The viewer: slides in the browser with what models say of them, from a server or as a folder of static files.

`cohort` finds what is shown, `pictures` reads its pixels, `numbers` what was predicted, `site` says what each address
holds; `server` serves these to whoever has the token, `export` writes them as files.
"""
