"""Everything that needs torch: the decoder, calibration, folding, the methods. Nothing else imports it."""
