from ...absent import absent

QuantizedTensor = absent("pytorch.tensor.QuantizedTensor")
