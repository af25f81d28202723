//go:build tools

// Package interop names the commands that the tests build.
package interop

import (
	_ "github.com/globalsign/est/cmd/estclient"
	_ "github.com/globalsign/est/cmd/estserver"
)
