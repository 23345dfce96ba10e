package main

import "fpmd/manager"

// execWorker is the hidden subcommand that every worker process begins as. It
// does not return when all is well: the worker's program takes its place.
func execWorker(args []string) int {
	return manager.ExecWorker(args)
}
