package gateway

import (
	"slices"

	"github.com/mailgw/mailgw/backends"
)

// An offer is what a listener has announced to a session. It holds until the
// next EHLO, whatever the backends can do by then.
type offer struct {
	size       int64 // of the largest message; zero is no limit
	eightBit   bool
	utf8       bool
	chunking   bool
	binary     bool
	dsn        bool
	requireTLS bool
}

// offer is what can be announced now.
func (l *listener) offer() offer {
	can := backends.Capabilities{EightBitMIME: true, SMTPUTF8: true, BinaryMIME: true, DSN: true, RequireTLS: true}
	if l.Mirror {
		can = l.commonCapabilities(can)
	}
	return offer{
		size:       smallest(int64(l.Limits.MessageSize), can.Size),
		eightBit:   can.EightBitMIME,
		utf8:       can.SMTPUTF8 && can.EightBitMIME, // RFC 6531, section 3.1
		chunking:   l.Chunking,
		binary:     can.BinaryMIME && l.Chunking,
		dsn:        can.DSN && l.DSN,
		requireTLS: can.RequireTLS && l.OfferRequireTLS,
	}
}

// commonCapabilities returns what of can all backends can do in which a route
// of the listener ends, or a named one. Who is diverted is owed no notification
// yet.
func (l *listener) commonCapabilities(can backends.Capabilities) backends.Capabilities {
	for i, name := range slices.Concat(l.last, l.diverted) {
		its := backends.CapabilitiesOf(l.gen.backends[name].Backend)
		can.Size = smallest(can.Size, its.Size)
		can.EightBitMIME = can.EightBitMIME && its.EightBitMIME
		can.SMTPUTF8 = can.SMTPUTF8 && its.SMTPUTF8
		can.BinaryMIME = can.BinaryMIME && its.BinaryMIME
		can.DSN = can.DSN && (its.DSN || i >= len(l.last))
		can.RequireTLS = can.RequireTLS && its.RequireTLS
	}
	return can
}

// smallest returns the smaller one of two limits, of which zero is none.
func smallest(a, b int64) int64 {
	if a == 0 || b > 0 && b < a {
		return b
	}
	return a
}
