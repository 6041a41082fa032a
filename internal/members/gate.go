package members

import "github.com/mentasystems/colmena/internal/wire"

// AdmitInsider refuses calls from outside the cluster.
func (k *Keeper) AdmitInsider(peer wire.Hello) error {
	if own := k.self.ClusterID(); own == "" || peer.ClusterID != own {
		return &wire.Error{Code: wire.ErrRefused, Msg: "a call from outside the cluster", Detail: "join first"}
	}
	return nil
}

// AdmitMember refuses calls of nodes that are no members too, as far as this node is sure to know: only the leader is.
func (k *Keeper) AdmitMember(peer wire.Hello) error {
	if err := k.AdmitInsider(peer); err != nil {
		return err
	}
	if k.raft.Leading() && !k.IsMember(peer) {
		return &wire.Error{Code: wire.ErrRefused, Msg: "a call of node " + peer.NodeID, Detail: "it is no member of the cluster, or was replaced: start it with Join"}
	}
	return nil
}
