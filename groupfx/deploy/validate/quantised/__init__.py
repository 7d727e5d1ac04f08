"""A quantised file against the network that it was made of: the yardstick is noise, not rounding.

    y = f(x; W)          the float network
    z = f(x; s (q - o))  the quantised file: numbers q, scale s, zero point o, and s/2 off at most

Rounding to numbers that are `s` apart makes an error that is uniform in `[-s/2, s/2]` where nothing
saturates, so of power `s^2 / 12`, and one number says little of another's: the powers of all
products in a sum add up (Widrow and Kollar, Quantization Noise, 2008). With `b` bits over a range
of 2 R, `s = 2 R / 2^b`, so that a signal of power P has the signal-to-noise ratio

    10 log10(12 P / s^2) = 6.02 b + 4.77 + 20 log10(sqrt(P) / R)    dB

Nothing here assumes the range or the bits: the steps that the file itself states are put in, and
the power is that of the values at hand. What a site states is compared with what it does:

- *weight and bias*, without running anything: a quantiser may take the number below or above, so
  that each real number is less than a step off. The root-mean-square error of a channel is held to
  one step, which is sqrt(12) times, or 10.8 dB above, the noise of rounding to the nearest. A
  quantiser that rounds to the nearest is at half a step at most, 6 dB below the limit, by
  construction; one that learns which way to round (AdaRound) keeps it too. Beyond it, the numbers
  are not those of this weight at this scale, and what they are instead is looked for.
- *the site*: from the file's own input, in float64, with the float weights. Its error may have 12
  times (10.8 dB more than) the power that its steps explain, by the same argument. Values that
  saturate are left out of it and counted.
- *an output*: relative noise adds up along a network, so the powers of all steps by those of the
  values they are applied to are summed up, saturation with its own error, and again 12 times that
  is allowed.

Of 50 honest files (ONNX Runtime's quantiser: opsets 13 to 21, QDQ, QLinearConv and dynamic, per
tensor and per channel, int8, uint8 and int4) sites are 8.9 to 12.7 dB below that limit, outputs 7.4
to 17.6 dB, and the worst channel of a weight is 0.40 steps off; the page on quantised files of the
documentation has the figures, and the long tests hold other draws to them.

A scale of activations that is wrong on both ends of its pair shows only in what it does: in values
that are far beyond its range, or in a range that the values hardly use.
"""
