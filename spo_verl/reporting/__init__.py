"""Runs drawn for people: one HTML page that needs no network, and a picture of the main curves.

| file | what |
|---|---|
| ``aggregates`` | a record -> curves over training steps, as plain data |
| ``samples`` | which rollouts, prompts and histories a page embeds, within its size |
| ``page`` | the page: data packed into ``page.html`` with ``page.css``, ``charts.js`` and ``page.js`` |
| ``picture`` | the main curves as PNG |

Everything is read from :mod:`spo_verl.record`; nothing here starts or joins a cluster.
"""
