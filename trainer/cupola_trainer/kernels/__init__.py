"""Operations that plain torch does in several passes over memory, each as one autograd function.
They need only torch."""
