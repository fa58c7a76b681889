module stowage.dev/e2e/cluster/netfwd

go 1.26.0
