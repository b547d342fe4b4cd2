"""Generators of text, one module a language: closed facts, cue words, tables, word problems."""
