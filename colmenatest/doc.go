// Package colmenatest helps an application test what it does with colmena: on one node
// that starts in milliseconds, and on a cluster whose nodes can be killed, started
// again and cut off from one another. It uses nothing that an application could not use
// itself.
//
// DB is for most tests: an empty database that is gone when the test ends.
//
//	func TestDeposit(t *testing.T) {
//		t.Parallel()
//		db := colmenatest.DB(t)
//		...
//	}
//
// NewCluster is for what an application does when a machine fails.
//
//	func TestDepositSurvivesTheLeader(t *testing.T) {
//		c := colmenatest.NewCluster(t, 3)
//		bank := NewBank(c.DB(c.Follower()))
//		...
//		c.Kill(c.Leader())
//		...
//	}
//
// Whatever a test did, its end is checked: all nodes are brought back and connected
// again, must come to the same state, and are compared database by database and row by
// row; SQLite examines every file; and no goroutine that a node started may be left. A
// test that failed already is only cleaned up.
//
// All functions and methods that take or hold a testing.TB end the test when they cannot
// do what they are asked to, so they belong on the test's own goroutine; Node, DB and
// FailNext may be called from every goroutine. Tests may run in parallel. A wait for
// nodes is bounded by Timeout.
//
// Nodes are in one process, on loopback. What that cannot show: a crash of the process or
// the machine with what it leaves half-written on disk, clocks that differ, a slow or full
// disk, packets that arrive late.
package colmenatest
