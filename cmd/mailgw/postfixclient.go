package main

import (
	"fmt"
	"net/netip"
	"strconv"
	"time"
)

// limitClient lets a client of Postfix's send no more recipients at once than the
// listener takes, and warns of other limits.
func (p *postfixSide) limitClient(transport string) {
	most, why := p.Limits.Recipients, ""
	if p.Protocol == "smtp" {
		most, why = 1, "SMTP has one answer for all recipients of a message, so each gets one of its own; in LMTP they share it."
	}
	if most > 0 && most < defaultRecipients {
		p.main = append(p.main, postfixParameter{name: transport + "_destination_recipient_limit", value: strconv.Itoa(most), why: why})
	}
	if wait := p.Limits.AskTimeout; wait >= commandPatience {
		p.warn("Postfix waits %s for the answer to a command; want a shorter limits.ask_timeout", seconds(commandPatience))
	}
	if size := p.Limits.MessageSize; size > 0 && size < defaultMessageSize {
		p.warn("Postfix takes messages of %d octets, and bounces those that are larger than limits.message_size; want as much, or a smaller message_size_limit in main.cf", defaultMessageSize)
	}
}

// ownClient adds a client of Postfix's that is for the listener alone, and
// returns its name.
func (p *postfixSide) ownClient(why string) string {
	options := p.client()
	if p.TLS.Mode == "off" {
		options = append(options, postfixParameter{name: "tls_security_level", value: "none"})
	}
	switch addr, err := netip.ParseAddr(p.host); {
	case p.host != "" && err != nil:
		options = append(options, postfixParameter{name: "host_lookup", value: "native", why: "It finds " + p.host + " where mailgw does."})
	case addr.IsLoopback() && addr.Is6():
		options = append(options, postfixParameter{name: "bind_address6", value: p.host, why: trustedHere})
	case addr.IsLoopback():
		options = append(options, postfixParameter{name: "bind_address", value: p.host, why: trustedHere})
	}
	options = append(options,
		postfixParameter{name: "fallback_relay", why: "What main.cf may have for mail that leaves this machine does not hold here."},
		postfixParameter{name: "generic_maps"},
		postfixParameter{name: "header_checks"},
		postfixParameter{name: "mime_header_checks"},
		postfixParameter{name: "nested_header_checks"},
		postfixParameter{name: "body_checks"},
	)
	options = p.named(options)
	if p.Mirror {
		options = append(options, postfixParameter{name: "disable_mime_output_conversion", value: "yes", why: "Not even where 8BITMIME is not announced."})
	}
	name := "mailgw-" + p.Name
	p.services = append(p.services, postfixService{
		name: name + "  unix", columns: p.columns("-", p.processes(defaultProcesses)) + p.Protocol, options: options, why: why,
	})
	return name
}

const trustedHere = "It is trusted as long as it comes from here."

// client are the parameters that all clients of the listener need.
func (p *postfixSide) client() []postfixParameter {
	parameters := []postfixParameter{
		{name: "send_xforward_command", value: "yes", why: "Who the client is, and the queue id."},
		{name: "line_length_limit", value: "0", why: "Long lines are not broken."},
	}
	if wait := p.Limits.AnswerTimeout; wait >= messagePatience {
		parameters = append(parameters, postfixParameter{name: "data_done_timeout",
			value: seconds(wait + time.Minute), why: "More than limits.answer_timeout, or mail comes twice."})
	}
	if p.TLS.Mode != "off" {
		parameters = append(parameters, postfixParameter{name: "tls_security_level", value: "encrypt"})
	}
	if p.TLS.Mode == "implicit" {
		parameters = append(parameters, postfixParameter{name: "tls_wrappermode", value: "yes"})
	}
	return parameters
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.0fs", d.Seconds()) }

// named gives parameters of smtp(8) and lmtp(8) the names that they have in the
// one of them.
func (p *postfixSide) named(parameters []postfixParameter) []postfixParameter {
	for i := range parameters {
		parameters[i].name = p.Protocol + "_" + parameters[i].name
	}
	return parameters
}
