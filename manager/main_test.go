package manager

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// testAs names what the test binary is to be instead of a run of the tests.
const testAs = "FPMD_TEST_AS"

// TestMain lets the test binary be every program that the tests need, so that
// they start real processes. To add one, add a case.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "exec-worker" {
		os.Exit(ExecWorker(os.Args[2:]))
	}
	switch as := os.Getenv(testAs); as {
	case "":
		goleak.VerifyTestMain(m)
	case "echo worker":
		os.Exit(echoWorker())
	case "exchange worker":
		os.Exit(exchangeWorker())
	case "hesitant worker":
		os.Exit(hesitantWorker())
	case "half-hearted worker":
		os.Exit(halfHeartedWorker(false))
	case "short-lived worker":
		os.Exit(halfHeartedWorker(true))
	case "supervisor":
		os.Exit(testSupervisor())
	default:
		fmt.Fprintf(os.Stderr, "%s=%s: no such program\n", testAs, as)
		os.Exit(64)
	}
}
