"""Operations that plain torch needs several passes over memory for, each as one autograd function. Only torch is
needed."""
