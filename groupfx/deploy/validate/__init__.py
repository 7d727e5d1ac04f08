"""Whether two sides are the same function, and which site is to blame if they are not."""
