module reference

go 1.23
