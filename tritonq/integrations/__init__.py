"""tritonq inside other programs. Each of them is imported only where its module here is."""
