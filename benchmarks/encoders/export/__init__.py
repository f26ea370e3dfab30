"""Encoders written as other libraries read them: the weights as they are, what must be told of them beside."""
