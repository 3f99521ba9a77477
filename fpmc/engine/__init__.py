"""The sum over the source: a reference to read and to test against, and a streaming engine to use."""
