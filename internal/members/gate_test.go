package members

import (
	"testing"

	"github.com/mentasystems/colmena/internal/wire"
)

// The leader alone is sure to know who is a member now; nobody answers another cluster.
func TestCallsOfStrangersAreRefused(t *testing.T) {
	n := newLeader(t)
	own := n.Hello(wire.PurposeRPC)
	other, replaced, outside, joining := own, own, own, own
	other.NodeID = "nobody"
	replaced.Incarnation = "another"
	outside.ClusterID = "another"
	joining.ClusterID = ""
	for name, tt := range map[string]struct {
		peer            wire.Hello
		insider, member bool // admitted by the leader
	}{
		"itself": {own, true, true}, "no member": {other, true, false}, "another incarnation": {replaced, true, false},
		"another cluster": {outside, false, false}, "no cluster yet": {joining, false, false},
	} {
		n.leading = true
		if err := n.AdmitInsider(tt.peer); (err == nil) != tt.insider {
			t.Errorf("%s: %v", name, err)
		}
		if err := n.AdmitMember(tt.peer); (err == nil) != tt.member {
			t.Errorf("%s, to the leader: %v", name, err)
		} else if err != nil {
			wantCode(t, err, wire.ErrRefused)
		}
		n.leading = false
		if err := n.AdmitMember(tt.peer); (err == nil) != tt.insider {
			t.Errorf("%s, to a follower: %v", name, err)
		}
	}
}
