"""The tests of the plugin. mailgw test-plugin tests the rest: that it is a good one."""

import unittest
from unittest import mock

import mailgw
from plugin import HAS_LEFT, Plugin, Settings


class TestPlugin(unittest.TestCase):
    def test_who_has_left_is_refused(self) -> None:
        plugin = Plugin(Settings(left=["bob@example.org"], mark="X-Mark: yes"))
        for addresses, want in [
            (["ann@example.org"], []),
            (["ann@example.org", "Bob@example.org"], [mock.call(1, HAS_LEFT)]),
        ]:
            with self.subTest(addresses):
                tx = mock.create_autospec(mailgw.DataContext, instance=True, size=10)
                tx.envelope = mailgw.Envelope(recipients=[mailgw.Recipient(address) for address in addresses])
                plugin.deliver(tx)
                self.assertEqual(tx.set_status.mock_calls, want)
                tx.add_field.assert_called_once_with(0, "X-Mark: yes")

    def test_bad_mark(self) -> None:
        with self.assertRaises(mailgw.SettingError):
            Plugin(Settings(mark="seen"))


if __name__ == "__main__":
    unittest.main()
