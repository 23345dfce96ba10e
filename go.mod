module fpmd

go 1.26.0

require (
	github.com/BurntSushi/toml v1.6.0
	github.com/hashicorp/go-plugin v1.8.0
	golang.org/x/sync v0.25.0
	golang.org/x/sys v0.50.0
)
